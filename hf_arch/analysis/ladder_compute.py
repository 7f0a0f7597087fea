"""A ladder against compute: the best size for each, and how much one run saves another, by every admissible law.

The range over the laws that the points do not reject (`admissible`), of three things:

- The slope dL/dlog N at one compute, C = FLOPs per token x tokens, is linear in A and B. A size may be the best where
  it may be 0; the best size may be beyond the ladder's where it may still fall at the largest, or rise at the smallest.
- The frontier, the loss of the best size at each compute: its envelopes are those of the loss of each size. Of laws
  that all fall with compute, the least compute for a loss is where the lower envelope reaches it, the most where the
  upper one does.
- The multiplier, between two frontiers over the sizes that both have: one of which larger sizes were left out would
  else be held against a best size that it was not given. Their errors are independent, so that both laws together may
  be t^2 above their best: what one uses up the other has no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_arch.analysis.admissible import AdmissibleLaws, t_squared
from hf_arch.core.formats import quantity

GRID = 80
COMPUTES = 7
REACH = 32.0
"""How far beyond a compute the other's curve is followed for the loss there."""
_COARSE = 4
"""Of the grid of sizes, every so many for an envelope, which is flat about its minimum."""
_FOLLOWED = 48
_SHARES = np.linspace(0.0, 1.0, 7)
"""Of the bound of two laws together, what one of them may use up."""


@dataclass(frozen=True)
class Minimum:
    """The best size at one compute, and the range that the admissible laws give it among the sizes of the ladder;
    `below` and `above`: some of those laws have it below the smallest, or above the largest."""

    flops: float
    parameters: float
    tokens: float
    loss: float
    low: float
    high: float
    below: bool
    above: bool

    @property
    def words(self) -> str:
        """`1.2TFLOPs: 30k parameters [20k, 50k or more]`."""
        at = f"{quantity(self.flops)}FLOPs:"
        if self.below and self.above:
            return (
                f"{at} not known: by some laws that the points allow below the smallest size, by some above the largest"
            )
        low, high = (quantity(value) for value in (self.low, self.high))
        less, more = (" or less" if self.below else ""), (" or more" if self.above else "")
        return f"{at} {quantity(self.parameters)} parameters [{low}{less}, {high}{more}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `at_edge`: the best is the smallest or the largest size of the ladder."""
        smallest = self.below and self.parameters == self.low
        largest = self.above and self.parameters == self.high
        numbers = {key: getattr(self, key) for key in Minimum.__annotations__}
        return {**numbers, "at_edge": float(smallest or largest), "words": self.words}


class Frontier:
    """The lowest loss at each compute, over the sizes from the smallest to the largest, of those `among` two ends.

    flops_per_token: those of the rungs, float64 [n]; FLOPs between the sizes are linear in logarithms.
    """

    def __init__(
        self, laws: AdmissibleLaws, flops_per_token: np.ndarray, among: tuple[float, float] = (0.0, np.inf)
    ) -> None:
        self.laws = laws
        self.flops_per_token = flops_per_token
        sizes, first = np.unique(laws.points.parameters, return_index=True)
        self.sizes = np.geomspace(max(sizes[0], among[0]), min(sizes[-1], among[1]), GRID)
        self.flops = np.exp(np.interp(np.log(self.sizes), np.log(sizes), np.log(flops_per_token[first])))

    def losses(self, compute: np.ndarray) -> np.ndarray:
        """The loss of the best size at each compute, float64 [n], by the best law."""
        return self._all(compute).min(axis=1)

    def at(self, compute: float) -> tuple[np.ndarray, np.ndarray]:
        """Sizes, and the loss of each at one compute by the best law, float64 [n] each."""
        return self.sizes, self._all(np.asarray([compute]))[0]

    def minimum(self, compute: float) -> Minimum:
        """The best size at one compute."""
        sizes, losses = self.at(compute)
        best = _lowest(np.log(sizes), losses)
        # A step in log N is one in log tokens, down, by as much as FLOPs per token rise.
        terms = self.laws.terms(sizes, compute / self.flops) * self._slopes()
        low, high = self.laws.extremes(terms, self.laws.bound)
        least, most = low.min(axis=0), high.max(axis=0)
        first, last = _crossing(np.log(sizes), most), _crossing(np.log(sizes[::-1]), -least[::-1])
        size = float(np.exp(best))
        tokens = np.asarray([compute / np.exp(np.interp(best, np.log(sizes), np.log(self.flops)))])
        return Minimum(
            float(compute),
            size,
            float(tokens[0]),
            float(self.laws.predict(np.asarray([size]), tokens)[0]),
            min(float(np.exp(first)), size),
            max(float(np.exp(last)), size),
            below=bool(most[0] >= 0),
            above=bool(least[-1] <= 0),
        )

    def envelopes(self, compute: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """The least and the greatest loss of the best size at each of n computes, by the laws within each of k bounds:
        [2, k, n]."""
        kept = np.unique(np.r_[0:GRID:_COARSE, GRID - 1])
        sizes, tokens = np.broadcast_arrays(self.sizes[kept], compute[:, None] / self.flops[kept])
        terms = self.laws.terms(sizes.ravel(), tokens.ravel()).reshape(-1, *tokens.shape, 3)
        return np.stack(self.laws.least_of(terms, bounds))

    def _slopes(self) -> np.ndarray:
        """dL/dlog N at one compute, as factors of the terms of E, A and B: [pairs, GRID, 3]."""
        steeper = np.gradient(np.log(self.flops), np.log(self.sizes))
        a, b = self.laws.exponents[:, :1], self.laws.exponents[:, 1:]
        return np.stack(np.broadcast_arrays(0.0, -a, b * steeper[None]), axis=-1)

    def _all(self, compute: np.ndarray) -> np.ndarray:
        tokens = compute[:, None] / self.flops[None]
        return self.laws.predict(np.broadcast_to(self.sizes, tokens.shape), tokens)


@dataclass(frozen=True)
class Multiplier:
    """With which share of the compute of `second` the run `first` reaches its loss, at several computes, with a band;
    high is infinite, and low 0, where some law needs more than 32 times as much, or less than a 32nd."""

    first: str
    second: str
    flops: tuple[float, ...] = ()
    ratio: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    trained: float = np.inf
    """The most compute that `first` was trained with."""
    reason: str = field(default="")

    @property
    def words(self) -> str:
        """The ratio at the lowest and the highest compute, and what the laws do not agree on."""
        if self.reason:
            return f"{self.first} against {self.second}: no multiplier of compute: {self.reason}"
        ends = [
            f"{_number(self.ratio[i])} [{_number(self.low[i])}, {_number(self.high[i])}]{of} at "
            f"{quantity(self.flops[i])}FLOPs"
            for i, of in ((0, " of its compute"), (-1, ""))
        ]
        said = [
            f"{self.first} reaches the loss of {self.second} with {ends[0]} and {ends[1]}, both at "
            "their best sizes by the laws",
            *(
                f"at {where} of {len(self.flops)} computes {what}"
                for what, where in self._disagreements.items()
                if where
            ),
        ]
        return "; ".join(said)

    @property
    def _disagreements(self) -> dict[str, int]:
        """What the admissible laws leave open, and at how many computes."""
        compute, low, ratio, high = (np.asarray(x) for x in (self.flops, self.low, self.ratio, self.high))
        masks = {
            "the laws that the points allow do not agree which of them needs less": (low <= 1) & (high >= 1),
            f"they do not agree within a factor of {REACH:g}": (low == 0) | np.isinf(high),
            f"{self.first} is followed beyond the compute it was trained with": compute * ratio > self.trained,
        }
        return {what: int(mask.sum()) for what, mask in masks.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; a number beyond reach is None."""
        numbers = {
            key: [float(x) if np.isfinite(x) else None for x in getattr(self, key)]
            for key in ("flops", "ratio", "low", "high")
        }
        open_ = {} if self.reason else {"left_open": self._disagreements}
        return {"first": self.first, "second": self.second, **numbers, **open_, "reason": self.reason or None}


def shared_sizes(one: Frontier, other: Frontier) -> tuple[float, float]:
    """The smallest and the largest size that both have."""
    return max(one.sizes[0], other.sizes[0]), min(one.sizes[-1], other.sizes[-1])


def multipliers(
    first: str, second: str, one: Frontier, other: Frontier, measured: Sequence[float] | np.ndarray
) -> Multiplier:
    """The multiplier at computes across those that were `measured` of `other`; the band is over both sets of laws."""
    computes = np.geomspace(np.min(measured), np.max(measured), COMPUTES)
    follow = np.geomspace(computes[0] / REACH, computes[-1] * REACH, _FOLLOWED * 4)
    bound = t_squared(min(one.laws.degrees, other.laws.degrees))
    among = shared_sizes(one, other)
    mine, theirs = (Frontier(side.laws.within(bound), side.flops_per_token, among) for side in (one, other))
    best = _reached(follow, mine.losses(follow), theirs.losses(computes))
    coarse = np.geomspace(follow[0], follow[-1], _FOLLOWED)
    curves = mine.envelopes(coarse, bound * _SHARES[::-1])
    targets = theirs.envelopes(computes, bound * _SHARES)
    # The least compute: the most that the other's loss may be, and the least that one's own may.
    low = np.min([_reached(coarse, *pair) for pair in zip(curves[0], targets[1], strict=True)], axis=0)
    high = np.max([_reached(coarse, *pair) for pair in zip(curves[1], targets[0], strict=True)], axis=0)
    trained = float((mine.flops_per_token * mine.laws.points.tokens).max())
    ratio, least, most = (tuple(_within_reach(values / computes).tolist()) for values in (best, low, high))
    return Multiplier(first, second, tuple(computes.tolist()), ratio, least, most, trained)


def _reached(follow: np.ndarray, losses: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The compute at which a curve of losses that fall comes down to each target; 0 below its reach, inf above."""
    falling = np.minimum.accumulate(losses)
    # np.interp wants what rises.
    with np.errstate(divide="ignore"):
        return np.exp(np.interp(-targets, -falling, np.log(follow), left=-np.inf, right=np.inf))


def _lowest(x: np.ndarray, losses: np.ndarray) -> float:
    """Where a curve on an even grid is lowest: by the parabola through its lowest point and both neighbours."""
    best = int(losses.argmin())
    if not 0 < best < len(x) - 1:
        return float(x[best])
    before, lowest, after = losses[best - 1 : best + 2]
    bend = before - 2 * lowest + after
    return float(x[best] + (0.5 * (before - after) / bend if bend > 0 else 0.0) * (x[1] - x[0]))


def _crossing(x: np.ndarray, slopes: np.ndarray) -> float:
    """Where slopes first rise to 0, linear between the points of a grid: at its first point where they begin above, at
    its last where they do not get there."""
    above = np.flatnonzero(slopes >= 0)
    if not above.size:
        return float(x[-1])
    i = int(above[0])
    if i == 0:
        return float(x[0])
    share = -slopes[i - 1] / (slopes[i] - slopes[i - 1]) if np.isfinite(slopes[i - 1]) else 0.0
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


def _within_reach(ratio: np.ndarray) -> np.ndarray:
    return np.where(ratio > REACH, np.inf, np.where(ratio < 1 / REACH, 0.0, ratio))


def _number(ratio: float) -> str:
    if np.isinf(ratio):
        return f"more than {REACH:g}"
    return f"{ratio:.2f}" if ratio else f"less than 1/{REACH:g}"
