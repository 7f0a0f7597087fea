"""Whether weights change by the optimiser's steps alone, at the rates of the schedule, and are scored as they then are.

A part of a plugin may take a step of its own in its forward pass or in an evaluation, put an average in the place of
weights before they are scored, or reach for the optimiser. Around every step a few values of each parameter are
compared, around a quarter of them also of what the optimiser keeps of its gradients, and around a few steps and every
evaluation and checkpoint two sums over all values of each parameter:

    moved     numbers of parameters that changed between two steps of the optimiser
    memory    those of which what the optimiser keeps changed between two of its steps
    swapped   those that changed between its last step and the end of the score; None where the recipe asks for the best
              of several checkpoints
    rates     the largest factor between the rate that a group is stepped with and that of the schedule, which
              multiplies the rates of all groups by one number
    settings  {setting of a group: [as training began, as it was then]} of those that changed on the way
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

_FIRST, _PARTS = 3, 4
"""So many steps at the start are looked at, and the first of so many equal parts of all."""
_SAMPLED = 32
"""Values of each tensor that are compared around every step."""
_SETTINGS = ("weight_decay", "betas", "eps", "momentum", "dampening", "nesterov", "amsgrad", "maximize", "initial_lr")
"""Of a group: those that stay as a recipe says. Other entries are what some optimisers keep there."""
_Weights = dict[str, tuple[float, float]]


def is_looked_at(state: TrainerState) -> bool:
    """Whether the step that is under way is one of the few."""
    done = state.global_step + 1
    return done < _FIRST or done >= state.max_steps or done % max(1, state.max_steps // _PARTS) == 0


def _is_drawn(step: int) -> bool:
    """Of a quarter of the steps, without a period that a part could keep to."""
    return hashlib.sha256(b"%d" % step).digest()[0] % 4 == 0


class BetweenSteps(TrainerCallback):
    """To be added to a trainer of `model`, which is not wrapped, before what a plugin adds later."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.after: _Weights | None = None
        self.moved: dict[str, int] = {}
        self.rates = 1.0
        self.keeps_last = True
        self.samples, self.memory = _Samples(model), _Samples(model, of_memory=True)
        self.first_rates: list[float] = []
        self.settings: dict[str, Any] = {}
        self.changed: dict[str, list[Any]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.keeps_last = not args.load_best_model_at_end
        self.after = _weights(self.model)
        optimizer = kwargs["optimizer"]
        self.samples.keep(optimizer)
        self.settings = dict(_settings(optimizer, kwargs["lr_scheduler"]))
        self.first_rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.samples.compare()
        self.memory.compare()
        if self.after is not None:
            self.moved |= _changed(self.model, self.after, _weights(self.model))
        self.after = None
        groups = kwargs["optimizer"].param_groups
        rates = [float(group["lr"]) for group in groups]
        for rate, of_schedule in zip(rates, kwargs["lr_scheduler"].get_last_lr(), strict=False):
            self.rates = max(self.rates, _factor(rate, float(of_schedule)))
        shares = [rate / first for rate, first in zip(rates, self.first_rates, strict=False) if first > 0]
        if shares:
            self.rates = max(self.rates, _factor(max(shares), min(shares)))
        self._compare_settings(kwargs["optimizer"], kwargs["lr_scheduler"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.samples.keep(kwargs["optimizer"])
        if is_looked_at(state) or _is_drawn(state.global_step):
            self.memory.keep(kwargs["optimizer"])
        if is_looked_at(state):
            self.after = _weights(self.model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.after is None and (control.should_evaluate or control.should_save):
            self.after = _weights(self.model)

    def facts(self) -> dict[str, Any]:
        """These numbers; to be called right after the score."""
        known = self.after is not None and self.keeps_last
        swapped = _changed(self.model, self.after or {}, _weights(self.model))
        return {
            "moved": sum({**self.samples.facts(), **self.moved}.values()),
            "memory": sum(self.memory.facts().values()),
            "swapped": sum(swapped.values()) if known else None,
            "rates": self.rates,
            "settings": self.changed,
        }

    def _compare_settings(self, optimizer: Any, schedule: Any) -> None:
        for name, value in _settings(optimizer, schedule):
            was = self.settings.get(name)
            if value != was:
                self.changed.setdefault(name, [was, value])


class _Samples:
    """A few values of each parameter, or of what the optimiser keeps of it, compared without waiting for the device."""

    def __init__(self, model: nn.Module, of_memory: bool = False) -> None:
        self.parameters = [(name, one) for name, one in model.named_parameters() if one.numel()]
        self.of_memory = of_memory
        self.kinds: list[tuple[str, int]] = []
        """Of each tensor: its parameter, and its size."""
        self.tensors: list[Tensor] = []
        self.views: list[tuple[int, Tensor]] = []
        """Of each tensor: where its memory was, and the values there."""
        self.kept: Tensor | None = None
        self.changed: Tensor | None = None
        self.found: set[str] = set()

    def keep(self, optimizer: Any) -> None:
        """What there is right after a step."""
        named = self._of_the_optimiser(optimizer) if self.of_memory else self.parameters
        kinds = [(name, tensor.numel()) for name, tensor in named]
        if kinds != self.kinds:
            self._collect()
            self.kinds, self.views, self.changed = kinds, [], None
        self.tensors = [tensor for _, tensor in named]
        self.kept = self._values()

    def compare(self) -> None:
        """With what there is right before the next one."""
        if self.kept is not None and (now := self._values()) is not None:
            changed = torch.ne(now, self.kept)
            self.changed = changed if self.changed is None else self.changed | changed
        self.kept = None

    def facts(self) -> dict[str, int]:
        """{parameter: its numbers} of those that changed."""
        self._collect()
        return {name: one.numel() for name, one in self.parameters if name in self.found}

    def _collect(self) -> None:
        if self.changed is not None:
            parts = self.changed.split([min(size, _SAMPLED) for _, size in self.kinds])
            self.found |= {name for (name, _), part in zip(self.kinds, parts, strict=True) if bool(part.any())}

    def _of_the_optimiser(self, optimizer: Any) -> list[tuple[str, Tensor]]:
        state = getattr(optimizer, "state", None)
        return [
            (name, value)
            for name, parameter in (self.parameters if isinstance(state, dict) else ())
            if isinstance(kept := state.get(parameter), dict)  # type: ignore[union-attr]
            for value in kept.values()
            if isinstance(value, Tensor) and value.numel() and value.device == parameter.device
        ]

    def _values(self) -> Tensor | None:
        if not self.tensors:
            return None
        if not self.views:
            self.views = [(tensor.data_ptr(), _sampled(tensor.detach())) for tensor in self.tensors]
        for index, tensor in enumerate(self.tensors):
            # other memory was put in its place, or the values are a copy
            if tensor.data_ptr() != self.views[index][0] or not tensor.is_contiguous():
                self.views[index] = tensor.data_ptr(), _sampled(tensor.detach())
        return torch.cat([view for _, view in self.views])


def _sampled(values: Tensor) -> Tensor:
    return values.flatten()[:: max(1, values.numel() // _SAMPLED)][:_SAMPLED]


def _settings(optimizer: Any, schedule: Any) -> Iterator[tuple[str, Any]]:
    yield "rates of the schedule", list(getattr(getattr(schedule, "scheduler", schedule), "base_lrs", ()))
    for index, group in enumerate(optimizer.param_groups):
        for name in _SETTINGS:
            if name in group:
                value = group[name]
                yield f"{name} of group {index}", list(value) if isinstance(value, tuple) else value


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
