"""Sets of tiny real runs, a second or two each: what the audit says of what was really trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_arch.analysis.comparison import Comparison
from hf_arch.experiments import run
from hf_arch.recipe.recipe import Recipe
from hf_arch.training.run import run_training

TINY: dict[str, Any] = {
    "model": {
        "architecture": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "data": {"corpus": "python-docs", "tokenizer": "bpe", "vocab_size": 512, "sequence_length": 64},
    "training": {
        "max_steps": 24,
        "per_device_train_batch_size": 8,
        "learning_rate": 3.0e-3,
        "warmup_steps": 0.1,
        "logging_steps": 2,
        "eval_strategy": "no",
        "use_cpu": True,
    },
    "evaluation": {"speed": False, "new_tokens": 2, "sequences": 8},
    "experiment": {"name": "real", "seeds": 3},
}


def recipe_of(**sections: dict[str, Any]) -> dict[str, Any]:
    """`TINY` with keys of its sections replaced."""
    return {name: {**values, **sections.get(name, {})} for name, values in TINY.items()}


def trained(root: Path, runs: dict[str, dict[str, Any]], hypothesis: str, **sections: dict[str, Any]) -> Comparison:
    """The comparison of a set of these runs, trained."""
    recipe = recipe_of(**sections)
    recipe["experiment"] |= {"runs": runs, "hypothesis": hypothesis}
    return run(recipe, root)


def train_seed(folder: Path, name: str, seed: int, hypothesis: str, **sections: dict[str, Any]) -> None:
    """One run, trained in this process."""
    recipe = recipe_of(**sections)
    recipe["experiment"] = {**recipe["experiment"], "name": name, "hypothesis": hypothesis}
    del recipe["experiment"]["seeds"]
    recipe["training"]["seed"] = seed
    run_training(Recipe.from_dict(recipe), folder, quiet=True)
