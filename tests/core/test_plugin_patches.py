"""What a plugin puts in the place of a part of the program, and what hf_arch itself puts around one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
import transformers.trainer
from transformers import Trainer

import hf_arch.models.weight_decay as weight_decay
from hf_arch.core import plugin_patches


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which no model was built and no plugin loaded; afterwards as it was."""
    original = Trainer.get_decay_parameter_names
    bare = getattr(original, "__wrapped__", original)
    monkeypatch.setattr(Trainer, "get_decay_parameter_names", bare)
    monkeypatch.setattr(plugin_patches, "_before", {})
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    plugin_patches.remember()
    yield
    Trainer.get_decay_parameter_names = original


def test_what_a_model_of_ours_teaches_trainer_is_no_plugins() -> None:
    before = plugin_patches.replaced()
    weight_decay._teach(transformers.trainer)
    assert hasattr(Trainer.get_decay_parameter_names, "__wrapped__")
    assert plugin_patches.replaced() == before


def test_a_function_in_its_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "get_decay_parameter_names", lambda self, model: [])
    assert "transformers.trainer.Trainer.get_decay_parameter_names" in plugin_patches.replaced()


def test_another_function_of_ours_in_its_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "get_decay_parameter_names", weight_decay.exempt_parameter_names)
    assert "transformers.trainer.Trainer.get_decay_parameter_names" in plugin_patches.replaced()


@pytest.mark.slow
def test_what_the_compiler_of_torch_wraps_is_no_plugins() -> None:
    before = plugin_patches.replaced()
    torch.compile(torch.nn.Linear(3, 3), backend="eager")(torch.zeros(2, 3)).sum().backward()
    assert plugin_patches.replaced() == before
