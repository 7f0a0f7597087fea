"""Equal runs: change one width of each model until its parameters (or training FLOPs per token) equal the reference's.

The feed-forward width is changed where the model has one, since that leaves the mixer alone, else the model width. Of
the widths that come within the tolerance the roundest is taken: multiples of 64 are tried first, then of 32, 16 ... 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import hf_arch
from hf_arch.errors import ConfigError, choice_error
from hf_arch.experiments.recipe import MatchOptions

STEPS = (64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Matched:
    """One model after matching: `changes` to its `model` section, the `size` reached, and its relative `residual`."""

    changes: dict[str, int]
    size: float
    residual: float


Build = Callable[[Mapping[str, int]], Any]
"""From changes of a model's sizes to its config; raises `ConfigError` where the sizes do not go together."""


def match_models(models: Mapping[str, Build], options: MatchOptions, seq_len: int) -> dict[str, Matched]:
    """Changes that make all `models` (by the names of their runs) equal within `options.tolerance`.

    Raises `ConfigError` naming the model that cannot be brought close enough, with the nearest size it has.
    """
    reference = options.reference or next(iter(models))
    if reference not in models:
        raise choice_error("experiment.match.reference", reference, models)
    target = _size(models[reference]({}), options.by, seq_len)
    matched = {}
    for name, build in models.items():
        found = Matched({}, target, 0.0) if name == reference else _match(build, options, seq_len, target)
        if abs(found.residual) > options.tolerance:
            raise ConfigError(
                f"experiment.match: run {name!r} comes to {found.size:,.0f} {options.by}, {found.residual:+.1%} from "
                f"the {target:,.0f} of {reference!r}; allowed: {options.tolerance:.1%}; change its sizes or the tolerance"
            )
        matched[name] = found
    return matched


def _match(build: Build, options: MatchOptions, seq_len: int, target: float) -> Matched:
    def size_at(changes: dict[str, int]) -> float | None:
        try:
            return _size(build(changes), options.by, seq_len)
        except ConfigError:  # this width does not go with the heads
            return None

    unchanged = _size(build({}), options.by, seq_len)
    candidates = [Matched({}, unchanged, unchanged / target - 1)]
    if abs(candidates[0].residual) <= options.tolerance / 4:
        return candidates[0]
    fields = ("intermediate_size", "hidden_size") if options.vary == "auto" else (options.vary,)
    for field in fields:
        if size_at({field: 64}) is not None and size_at({field: 64}) == size_at({field: 128}):
            continue  # the model has no such width
        for step in STEPS:
            candidates += [
                Matched({field: width}, size, size / target - 1)
                for width, size in _around(field, step, size_at, target)
            ]
            best = min(candidates, key=lambda found: abs(found.residual))
            if abs(best.residual) <= options.tolerance / 2:
                return best
    return min(candidates, key=lambda found: abs(found.residual))


def _around(
    field: str, step: int, size_at: Callable[[dict[str, int]], float | None], target: float
) -> list[tuple[int, float]]:
    """The allowed multiples of `step` just below and just above the target, by bisection (size grows with width)."""

    def allowed_from(multiple: int) -> tuple[int, float] | None:
        for candidate in range(multiple, multiple + 65):
            if (size := size_at({field: candidate * step})) is not None:
                return candidate, size
        return None

    low, high = 0, 1
    below: tuple[int, float] | None = None
    while (found := allowed_from(high)) is not None and found[1] < target:
        low, below = found[0], found
        high = 2 * found[0]
        if high * step > 1 << 20:
            break
    above = found
    while high - low > 1 and above is not None:
        middle = (low + high) // 2
        found = allowed_from(middle)
        if found is None or found[0] >= high:
            high = middle
        elif found[1] < target:
            low, below = found[0], found
        else:
            high, above = middle, found
    return [(found[0] * step, found[1]) for found in (below, above) if found is not None]


def _size(config: Any, by: str, seq_len: int) -> float:
    cost = hf_arch.cost(config, seq_len)
    return float(cost.params_total if by == "parameters" else cost.flops_per_token_train)
