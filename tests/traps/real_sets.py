"""Sets of tiny real runs, a second or two each: what the audit says of what was really trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_arch.analysis.comparison import Comparison
from hf_arch.experiments import run

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


def trained(root: Path, runs: dict[str, dict[str, Any]], hypothesis: str, **sections: dict[str, Any]) -> Comparison:
    """The comparison of a set of these runs, trained; `sections` replace keys of `TINY`."""
    recipe: dict[str, Any] = {name: {**values, **sections.get(name, {})} for name, values in TINY.items()}
    recipe["experiment"] |= {"runs": runs, "hypothesis": hypothesis}
    return run(recipe, root)
