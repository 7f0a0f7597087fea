"""Tiny saved models, and child processes as users have them: with this package, or without."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import hf_arch
from tests.fresh import Fresh

ROOT = Path(__file__).parents[2]

BLOCK = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_arch":
            raise ModuleNotFoundError("hf_arch is not installed", name=name)


sys.meta_path.insert(0, Blocked())
"""


def save_tiny(folder: Path, name: str, **overrides: Any) -> Path:
    """A tiny model with every parameter off its initial value."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name, **overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def python(tmp_path: Path, fresh: Fresh) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in a new process; `installed=False` makes any import of the package fail there."""

    def run(
        code: str, *arguments: str, installed: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), **(env or {})}
        variables.pop("PYTHONPATH", None)
        if installed:
            variables["PYTHONPATH"] = str(ROOT)
        else:
            code = BLOCK + code
        return fresh(code, *arguments, env=variables, cwd=tmp_path)

    return run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, with two checkpoints, its model and its results."""
    from hf_arch.recipe.recipe import load_recipe
    from hf_arch.training.run import run_training

    folder = tmp_path_factory.mktemp("run")
    text = folder / "private" / "text.txt"
    text.parent.mkdir()
    words = ("the", "king", "of", "france", "is", "dead", "and", "his", "crown", "lies", "in", "dust")
    drawn = torch.randint(len(words), (500, 8), generator=torch.Generator().manual_seed(0)).tolist()
    text.write_text("\n".join(" ".join(words[index] for index in row) for row in drawn) + "\n")
    recipe = {
        "model": {"architecture": "gla", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
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
        "experiment": {"name": "tiny", "hypothesis": "A tiny model learns | something."},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ARCH_CACHE", str(folder / "cache"))
        run_training(load_recipe(path, []), folder / "tiny_run", quiet=True)
    return folder / "tiny_run"


@pytest.fixture
def saved_llama(tmp_path: Path) -> Path:
    """A saved tiny Llama with a character tokenizer."""
    from hf_arch.data.tokenizer import build_tokenizer

    folder = save_tiny(tmp_path / "llama", "llama", qk_norm=False)
    build_tokenizer("char", 0, lambda: ["the king of france is dead"]).save_pretrained(folder)
    return folder
