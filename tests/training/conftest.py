"""A finished tiny run, made once for the tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_arch.recipe.recipe import Recipe
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values, write_text


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ARCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run_training(Recipe.from_dict(recipe_values(text)), folder, quiet=True)
    return folder
