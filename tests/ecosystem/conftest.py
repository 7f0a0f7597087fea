"""Small models of each kind on disk, with a tokenizer, and rows to train on. Everything here needs libraries on top."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("peft") is None or find_spec("trl") is None:
    collect_ignore_glob = ["test_*.py"]  # `bash scripts/test_ecosystem.sh` makes an environment that has them

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from transformers import AutoModelForCausalLM, set_seed

import hf_arch
from hf_arch.data.tokenizer import build_tokenizer

NAMES = ("llama", "mamba2", "gated_delta_net", "mixed", "moe", "mla")
"""Attention, two recurrences, a pattern of both with attention, experts, latent attention."""


def make_model(name: str, **overrides: Any) -> Any:
    set_seed(0)
    tokenizer = byte_tokenizer()
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos")}
    if name == "moe":  # layers alike, which TRL needs for its balance loss
        overrides = {"ffn": {"type": "moe", "num_experts": 4, "intermediate_size": 24}, **overrides}
    config = hf_arch.tiny_config(name, vocab_size=len(tokenizer), **special, **overrides)
    return AutoModelForCausalLM.from_config(config)


def byte_tokenizer() -> Any:
    return build_tokenizer("byte", 0, list)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "ecosystem" in item.path.parts:
            item.add_marker(pytest.mark.ecosystem)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each saved model."""
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in folders.items():
        make_model(name).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folders
