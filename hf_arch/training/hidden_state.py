"""Whether what a trained model computes is in its weights: a part of a plugin may count steps, read the clock, or keep
what it learned where nothing saves it.

Each is what logits of a row, in training mode or in evaluation mode, change by, over their rms:

    reloaded  in a new model with the same weights and buffers, as a new process has it: what is kept elsewhere, in
              attributes of the model or in the module of a plugin
    counts    in one whose counters (buffers of whole numbers) are those of a new model: a schedule of its own
    clock     where clocks are set forward and back

None where a new model cannot be made, or the model is noisy, so that nothing can be told.
"""

from __future__ import annotations

import copy
import datetime
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from hf_arch.core.plugin_source import PLUGIN_MODULE
from hf_arch.training.plugin_globals import PluginGlobals

_SHIFTS = (-10_000_019.0, 10_000_019.0, 3_607.5)
"""Seconds: before whatever a plugin took as its start, far behind it, and to another half of a second."""
_CLOCKS = ("time", "monotonic", "perf_counter", "process_time")
_NOISE = 1e-4
"""Of the rms of logits, between two equal passes."""


@torch.no_grad()
def hidden_state(model: nn.Module, row: Tensor, plugins: PluginGlobals) -> dict[str, float | None]:
    """These numbers; row: int64 [1, T]; plugins: as they were before training. The model is afterwards as it was, but
    for what the caller restores: modes, random numbers and buffers."""
    found: dict[str, float | None] = {"reloaded": None, "counts": None, "clock": None}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def logits() -> list[Tensor]:
        both = []
        for training in (False, True):
            for name, buffer in model.named_buffers():
                if name in buffers and buffers[name].shape == buffer.shape:
                    buffer.copy_(buffers[name])
            both.append(_logits(model, row, training))
        return both

    now = logits()
    if _gap(now, logits()) > _NOISE:
        return found
    found["clock"] = max(_gap(now, _at_another_time(logits, shift)) for shift in _SHIFTS)
    for name, buffer in model.named_buffers():
        if name in buffers and buffers[name].shape == buffer.shape:
            buffer.copy_(buffers[name])
    for fact, counters in (("reloaded", True), ("counts", False)):
        with plugins.as_they_began():
            if (other := _new_model(model, counters)) is None:
                return found
            try:
                then = [_logits(other, row, training) for training in (False, True)]
            except Exception:  # nor may it give anything without what it was given in training
                return found
        found[fact] = gap = _gap(now, then)
        if gap > _NOISE:  # so much is the new model's, whatever its counters
            return found
    return found


def _logits(model: nn.Module, row: Tensor, training: bool) -> Tensor:
    model.train(training)
    torch.manual_seed(0)
    # of its class: the forward of a model that was trained in bf16 is wrapped, and that of a new one is not
    found: Tensor = type(model).forward(model, input_ids=row, use_cache=False).logits
    return found.float()


def _gap(first: list[Tensor], second: list[Tensor]) -> float:
    gaps = []
    for one, other in zip(first, second, strict=True):
        size = max(float(one.square().mean().sqrt()), torch.finfo(torch.float32).tiny)
        gaps.append(float((one - other).square().mean().sqrt()) / size)
    return max(gaps)


def _new_model(model: Any, counters: bool) -> nn.Module | None:
    """A model of the same config that shares the weights and has buffers of its own, with the same values."""
    own = dict(model.named_buffers())
    values = {
        name: value.clone() if name in own else value
        for name, value in model.state_dict().items()
        if counters or name not in own or not _counts(own[name])
    }
    try:
        other: nn.Module = type(model)(copy.deepcopy(model.config))
        other.load_state_dict(values, strict=False, assign=True)
        return other.to(next(model.parameters()).device)
    except Exception:  # a part of a plugin may raise anything
        return None


def _counts(buffer: Tensor) -> bool:
    """Whether it may be a count: whole numbers, of one or few; of floats one that is whole and above 0."""
    if buffer.is_floating_point():
        return buffer.numel() == 1 and float(buffer) > 0 and float(buffer).is_integer()
    return not buffer.is_complex() and buffer.dtype != torch.bool and buffer.numel() == 1


def _at_another_time(logits: Callable[[], list[Tensor]], shift: float) -> list[Tensor]:
    with clocks_set(shift):
        return logits()


@contextmanager
def clocks_set(shift: float) -> Iterator[None]:
    """The clocks of Python, moved by so many seconds for this thread alone (those of a tracker stay true): where
    they are called by their modules, and under the names that plugins gave them."""
    moved: dict[int, Any] = {}
    for name in _CLOCKS:
        moved[id(getattr(time, name))] = _moved(getattr(time, name), shift)
        moved[id(getattr(time, f"{name}_ns"))] = _moved(getattr(time, f"{name}_ns"), int(shift * 1e9))
    moved[id(datetime.datetime)] = _moved_datetime(shift)
    plugins = [module for name, module in list(sys.modules.items()) if name.startswith(PLUGIN_MODULE)]
    with ExitStack() as patches:
        for module in (time, datetime, *plugins):
            for name, value in list(vars(module).items()):
                if id(value) in moved:
                    patches.enter_context(mock.patch.object(module, name, moved[id(value)]))
        yield


def _moved(clock: Callable[[], Any], shift: Any) -> Callable[[], Any]:
    mine = threading.get_ident()
    return lambda: clock() + shift if threading.get_ident() == mine else clock()


def _moved_datetime(shift: float) -> type:
    by = _moved(datetime.timedelta, datetime.timedelta(seconds=shift))

    class Moved(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) + by()

        @classmethod
        def utcnow(cls) -> Any:
            return super().utcnow() + by()

        @classmethod
        def today(cls) -> Any:
            return super().today() + by()

    return Moved
