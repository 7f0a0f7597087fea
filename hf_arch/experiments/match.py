"""Equal runs: change one width of each model until its parameters (or training FLOPs per token) equal the reference's.

The feed-forward width is changed where the model has one, since that leaves the mixer alone, else the model width. Of
the widths that come within the tolerance the roundest is taken: multiples of 64 are tried first, then of 32, 16 ... 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import hf_arch
from hf_arch.errors import ConfigError, choice_error
from hf_arch.experiments.build import build_config
from hf_arch.experiments.plan import PlannedRun
from hf_arch.experiments.recipe import MatchOptions, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELDS = ("intermediate_size", "hidden_size")
STEPS = (64, 32, 16, 8, 4, 2, 1)
LARGEST_GAP = 256  # between widths that go with a number of heads
LARGEST_WIDTH = 1 << 20


@dataclass(frozen=True)
class Matched:
    """One model after matching: `changes` to its `model` section, the `size` reached, and its relative `residual`."""

    changes: dict[str, int]
    size: float
    residual: float

    def describe(self) -> str:
        """What was changed, what came of it, and how far it is from the reference."""
        changed = ", ".join(f"{key}={value}" for key, value in self.changes.items()) or "as written"
        return f"{changed}: {self.size:,.0f}, {self.residual:+.2%} from the reference"


Build = Callable[[Mapping[str, int]], Any]
"""From changes of a model's sizes to its config; raises `ConfigError` where the sizes do not go together."""


def match_runs(
    recipe: Recipe, planned: Sequence[PlannedRun], tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None
) -> dict[str, Matched]:
    """What `experiment.match` of `recipe` asks for, by the name of the run; empty where it asks for nothing.

    `tokenizers` by `Recipe.data_key`; without them the vocabulary counts as the recipe says.
    """
    if recipe.experiment.match is None:
        return {}

    def builder(single: Recipe) -> Build:
        tokenizer = (tokenizers or {}).get(single.data_key)
        return lambda changes: build_config(single.with_model(changes), tokenizer)

    builders = {run.name: builder(run.recipe) for run in planned}
    return match_models(builders, recipe.experiment.match, planned[0].recipe.data.sequence_length)


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
                f"experiment.match: run {name!r} comes to {found.size:,.0f} {options.by}, {found.residual:+.1%} "
                f"from the {target:,.0f} of {reference!r}; allowed: {options.tolerance:.1%}; change its sizes"
            )
        matched[name] = found
    return matched


def _match(build: Build, options: MatchOptions, seq_len: int, target: float) -> Matched:
    @cache
    def at(field: str, width: int) -> Matched | None:
        try:
            size = _size(build({field: width}), options.by, seq_len)
        except ConfigError:  # this width does not go with the heads
            return None
        return Matched({field: width}, size, size / target - 1)

    size = _size(build({}), options.by, seq_len)
    best = Matched({}, size, size / target - 1)
    for field in FIELDS if options.vary == "auto" else (options.vary,):
        small, large = at(field, 64), at(field, 128)
        if small and large and small.size == large.size:
            continue  # the model has no such width
        ideal = _solve(partial(at, field))
        for step in STEPS:
            if abs(best.residual) <= options.tolerance / 2:
                return best
            low = ideal // step * step
            found = [at(field, width) for width in (low, low + step) if width > 0]
            best = min([best, *filter(None, found)], key=lambda matched: abs(matched.residual))
    return best


def _solve(at: Callable[[int], Matched | None]) -> int:
    """The largest width whose size does not exceed the target, by bisection: size grows with width."""

    def exceeds(width: int) -> bool:
        for candidate in range(width, width + LARGEST_GAP):
            if (matched := at(candidate)) is not None:
                return matched.residual > 0
        return True

    low, high = 0, 64
    while high < LARGEST_WIDTH and not exceeds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if exceeds(middle) else (middle, high)
    return low


def _size(config: Any, by: str, seq_len: int) -> float:
    cost = hf_arch.cost(config, seq_len)
    return float(cost.params_total if by == "parameters" else cost.flops_per_token_train)
