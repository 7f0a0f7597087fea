"""Whether weights change by the optimiser's steps alone, at the rates of the schedule, and are scored as they then are.

A part of a plugin may take a step of its own in its forward pass or in an evaluation, or put an average in the place of
weights before they are scored. Around a few steps, and every evaluation and checkpoint, of each parameter two sums are
compared:

    moved    numbers of parameters that changed between two steps of the optimiser
    swapped  those that changed between its last step and the end of the score; None where the recipe asks for the best
             of several checkpoints
    rates    the largest factor between the rate that a group is stepped with and that of the schedule
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

_FIRST, _PARTS = 3, 4
"""So many steps at the start are looked at, and the first of so many equal parts of all."""
_Weights = dict[str, tuple[float, float]]


class BetweenSteps(TrainerCallback):
    """To be added to a trainer of `model`, which is not wrapped, before what a plugin adds later."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.after: _Weights | None = None
        self.moved: dict[str, int] = {}
        self.rates = 1.0
        self.keeps_last = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.keeps_last = not args.load_best_model_at_end
        self.after = _weights(self.model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.after is not None:
            self.moved |= _changed(self.model, self.after, _weights(self.model))
        self.after = None
        for group, rate in zip(kwargs["optimizer"].param_groups, kwargs["lr_scheduler"].get_last_lr(), strict=False):
            self.rates = max(self.rates, _factor(float(group["lr"]), float(rate)))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = state.global_step + 1
        if done < _FIRST or done >= state.max_steps or done % max(1, state.max_steps // _PARTS) == 0:
            self.after = _weights(self.model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.after is None and (control.should_evaluate or control.should_save):
            self.after = _weights(self.model)

    def facts(self) -> dict[str, float | None]:
        """These numbers; to be called right after the score."""
        known = self.after is not None and self.keeps_last
        swapped = _changed(self.model, self.after or {}, _weights(self.model))
        return {
            "moved": sum(self.moved.values()),
            "swapped": sum(swapped.values()) if known else None,
            "rates": self.rates,
        }


def _weights(model: nn.Module) -> _Weights:
    with torch.no_grad():
        return {name: _sums(parameter) for name, parameter in model.named_parameters()}


def _sums(parameter: Tensor) -> tuple[float, float]:
    values = parameter.detach().double()
    return float(values.sum()), float(values.square().sum())


def _changed(model: nn.Module, before: _Weights, now: _Weights) -> dict[str, int]:
    """{parameter: its numbers} of those that both have and that differ."""
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if name in before and before[name] != now[name]
    }


def _factor(one: float, other: float) -> float:
    return max(one / other, other / one) if one > 0 and other > 0 else 1.0
