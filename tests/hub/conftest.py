"""Tiny saved models, and child processes as users have them: with this package, or without."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch

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
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in a child process; `installed=False` makes any import of the package fail there."""

    def run(
        code: str, *arguments: str, installed: bool = True, env: dict[str, str] | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), **(env or {})}
        variables.pop("PYTHONPATH", None)
        if installed:
            variables["PYTHONPATH"] = str(ROOT)
        else:
            code = BLOCK + code
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
