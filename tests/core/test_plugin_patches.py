"""What a plugin puts in the place of a part of the program, and what hf_arch itself puts around one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import pytest
import torch
import transformers.trainer
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import Trainer

import hf_arch.models.weight_decay as weight_decay
from hf_arch.core import plugin_patches
from hf_arch.core.plugin_source import PLUGIN_MODULE


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


def of_a_plugin(*args: Any, **kwargs: Any) -> None:
    pass


of_a_plugin = FunctionType(of_a_plugin.__code__, {"__name__": f"{PLUGIN_MODULE}mine"})


class Part(nn.Linear):
    """A module of a plugin, whose hooks are its own."""


Part.__module__ = f"{PLUGIN_MODULE}mine"


@pytest.mark.parametrize(
    "form", [lambda holder: of_a_plugin, lambda holder: partial(of_a_plugin, 1), partial(MethodType, of_a_plugin)]
)
def test_methods_and_hooks_that_a_plugin_puts_on_others_are_named(form: Callable[[Any], Any]) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))])
    linear, part = nn.Linear(2, 2), Part(2, 2)
    linear.register_forward_hook(lambda *_: None)
    assert plugin_patches.attached(optimizer, linear, part) == []
    optimizer.step = form(optimizer)  # type: ignore[method-assign]
    linear.register_forward_hook(form(linear))
    part.register_forward_hook(form(part))
    assert plugin_patches.attached(optimizer, linear, part) == ["AdamW.step", "Linear._forward_hooks"]


def test_a_function_of_a_plugin_anywhere_in_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.SiLU, "forward", of_a_plugin)
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", of_a_plugin)
    assert set(plugin_patches.replaced()) >= {
        "torch.nn.modules.activation.SiLU.forward",
        "torch.utils.data.dataloader.DataLoader.__iter__",
    }


def test_hooks_on_all_modules_are_named() -> None:
    before = plugin_patches.replaced()
    handle = register_module_forward_hook(of_a_plugin)
    try:
        assert set(plugin_patches.replaced()) - set(before) == {"torch.nn.modules.module._global_forward_hooks"}
    finally:
        handle.remove()
