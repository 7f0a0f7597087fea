"""Equal runs: change one whole number of each model until its size equals the reference's.

Size is parameters, training FLOPs per token, or bytes of decoding state, as `hf_arch.cost` counts them. The
feed-forward width is changed where that has an effect, since it leaves the mixer alone, else the model width. Of the
values that come within half the tolerance the roundest is taken: multiples of 64 are tried first, then of 32 ... 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.recipe.match import MatchOptions
from hf_arch.runs.limits import WIDTH_RATIO

AUTO_FIELDS = ("intermediate_size", "hidden_size")
STEPS = (64, 32, 16, 8, 4, 2, 1)
LARGEST_GAP = 256  # between values that the model allows, such as widths that go with a number of heads
LARGEST = 1 << 20
UNITS = {"parameters": "parameters", "flops": "training FLOPs per token", "state": "bytes of state"}


class MatchError(ConfigError):
    """The runs of a set cannot be made equal as `experiment.match` asks."""


@dataclass(frozen=True)
class Matched:
    """One model after matching: `changes` to its `model` section, the `size` reached, and its relative `residual`;
    `width` is the hidden size that was written."""

    changes: dict[str, int]
    size: float
    residual: float
    by: str = "parameters"
    width: int | None = None

    def describe(self) -> str:
        """What was changed, what came of it, and how far it is from the reference."""
        changed = ", ".join(f"{key}={value}" for key, value in self.changes.items()) or "as written"
        described = f"{changed}: {self.size:,.0f} {UNITS[self.by]}, {self.residual:+.2%} from the reference"
        width = self.changes.get("hidden_size")
        if width and self.width and max(width, self.width) >= WIDTH_RATIO * min(width, self.width):
            described += (
                f"; {self.width} was written: what does not follow the width (head_dim, the number of heads, the FFN) "
                "has another size than such a width wants, and the audit compares widths"
            )
        return described


Sizer = Callable[[Mapping[str, int]], float]
"""From changes of a model's section to its size; raises `ConfigError` where the values do not go together."""


def model_size(config: object, by: str, seq_len: int) -> float:
    """What `by` counts of a model with this config, at rows of `seq_len` tokens."""
    cost = hf_arch.cost(config, seq_len)  # type: ignore[arg-type]
    if by == "parameters":
        return float(cost.params_total)
    return float(cost.flops_per_token_train if by == "flops" else cost.state_bytes(seq_len))


def match_model(size: Sizer, target: float, options: MatchOptions, name: str, reference: str) -> Matched:
    """One model brought to `target` within `options.tolerance`; `name` and `reference` say in an error which model it
    is, and whose size.

    Raises `MatchError` where it cannot be brought close enough, with the nearest size it has.
    """
    if target <= 0:
        raise MatchError(f"experiment.match.by: run {reference!r} has no {UNITS[options.by]} to match")
    own = size({})
    best = Matched({}, own, own / target - 1, options.by)
    problems: list[str] = []
    for field in AUTO_FIELDS if options.vary == "auto" else (options.vary,):
        if abs(best.residual) <= options.tolerance / 2:
            break
        found = _search(_Values(size, field, target, options.by, problems), options.tolerance)
        best = min([best, *found], key=lambda matched: abs(matched.residual))
    if abs(best.residual) <= options.tolerance:
        return best
    hint = "change its sizes, or allow more by experiment.match.tolerance"
    if not best.changes and problems:
        hint = f"{options.vary} did not help ({problems[0]})"
    raise MatchError(
        f"experiment.match: run {name!r} comes to {best.size:,.0f} {UNITS[options.by]}, {best.residual:+.1%} "
        f"from the {target:,.0f} of {reference!r}; allowed: {options.tolerance:.1%}; {hint}"
    )


class _Values:
    """The sizes of one model over the values of one of its fields."""

    def __init__(self, size: Sizer, field: str, target: float, by: str, problems: list[str]) -> None:
        self.field, self.by = field, by
        self.known: dict[int, float] = {}

        @cache
        def at(value: int) -> Matched | None:
            try:
                reached = size({field: value})
            except ConfigError as error:  # this value does not go with the others
                problems.append(str(error))
                return None
            self.known[value] = reached / target - 1
            return Matched({field: value}, reached, reached / target - 1, by)

        self.at = at

    def exceeds(self, value: int) -> bool:
        """Whether the model is too large at the first allowed value from `value` on (or allows none there)."""
        for candidate in range(value, value + LARGEST_GAP):
            if (matched := self.at(candidate)) is not None:
                return matched.residual > 0
        return True

    def largest_below(self) -> int:
        """The largest value whose size does not exceed the target: size grows with width. Each model is built, so the
        next one is where the sizes so far say that the target lies; halves see to it that this ends."""
        low, high = 0, 64
        while high < LARGEST and not self.exceeds(high):
            low, high = high, 2 * high
        last = before = 2 * (high - low)
        while high - low > 1:
            guess = self._guess() if high - low <= before / 2 else None
            before, last = last, high - low
            middle = (low + high) // 2 if guess is None else min(max(guess, low + 1), high - 1)
            low, high = (low, middle) if self.exceeds(middle) else (middle, high)
        return low

    def _guess(self) -> int | None:
        """The value of the target's size on a parabola through the three nearest sizes; None where there is none."""
        near = sorted(self.known.items(), key=lambda point: abs(point[1]))[:3]
        if len({residual for _value, residual in near}) < 3:
            return None
        return round(
            sum(
                value * math.prod(other / (other - residual) for _value, other in near if other != residual)
                for value, residual in near
            )
        )


def _search(values: _Values, tolerance: float) -> list[Matched]:
    """The roundest value within half the tolerance, else every value tried."""
    first, second = values.at(64), values.at(128)
    if first is not None and second is not None and first.size == second.size:
        return []  # the field has no effect on this size
    ideal = values.largest_below()
    tried: list[Matched] = []
    for step in STEPS:
        low = ideal // step * step
        found = [matched for value in (low, low + step) if value > 0 and (matched := values.at(value)) is not None]
        close = [matched for matched in found if abs(matched.residual) <= tolerance / 2]
        if close:
            return [min(close, key=lambda matched: abs(matched.residual))]
        tried += found
    beyond = next((m for value in range(ideal + 1, ideal + LARGEST_GAP) if (m := values.at(value)) is not None), None)
    return tried + ([beyond] if beyond is not None else [])
