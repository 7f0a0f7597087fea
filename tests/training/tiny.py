"""A run small enough for tests: 20 kB of generated text, two layers, a few steps."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

SENTENCE = "the king of france is dead and his crown lies in the dust where no man dares to lift it again my lord"


def write_text(folder: Path, characters: int = 20_000) -> Path:
    """A file of lines of random common words; the same at every call."""
    draw = random.Random(0)
    lines = (" ".join(draw.choices(SENTENCE.split(), k=8)).capitalize() + "." for _ in range(characters // 40))
    path = folder / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def recipe_values(text: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A recipe as plain values; keyword arguments are laid over its sections."""
    values: dict[str, Any] = {
        "model": {
            "architecture": "llama",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "tie_word_embeddings": True,
        },
        "data": {"corpus": str(text), "tokenizer": "char", "sequence_length": 32},
        "training": {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.005,
            "warmup_steps": 2,
            "logging_steps": 1,
            "eval_steps": 3,
            "save_steps": 3,
            "precision": "fp32",
            "seed": 3,
        },
        "evaluation": {"sequences": 4, "final_sequences": 8, "new_tokens": 8, "speed_tokens": 4, "prompt": "the "},
        "experiment": {"name": "tiny"},
    }
    for name, changes in sections.items():
        values[name] = {**values[name], **changes}
    return values


def write_recipe(folder: Path, text: Path, **sections: dict[str, Any]) -> Path:
    """The same as a YAML file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe_values(text, **sections)))
    return path
