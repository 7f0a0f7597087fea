"""Laws of a ladder against compute: the best size for each, and how much compute one run saves another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_arch.analysis.loss_surface import LossSurface
from hf_arch.core.formats import quantity

GRID = 80
COMPUTES = 7
REACH = 32.0
"""How far beyond a compute the other's curve is followed for the loss there."""


class Frontier:
    """The lowest loss at each compute C = FLOPs per token x tokens, over the sizes from the smallest to the largest.

    parameters, flops_per_token: those of the rungs, float64 [n]; FLOPs between the sizes are linear in logarithms.
    """

    def __init__(self, law: LossSurface, parameters: np.ndarray, flops_per_token: np.ndarray) -> None:
        self.law = law
        sizes, first = np.unique(parameters, return_index=True)
        self.sizes = np.geomspace(sizes[0], sizes[-1], GRID)
        self.flops = np.exp(np.interp(np.log(self.sizes), np.log(sizes), np.log(flops_per_token[first])))

    def losses(self, compute: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """The loss of the best size at each compute, float64 [n], by the law or by a bootstrap draw of it."""
        return self._all(compute, values).min(axis=1)

    def at(self, compute: float) -> tuple[np.ndarray, np.ndarray]:
        """Sizes, and the loss of each at one compute, float64 [n] each."""
        return self.sizes, self._all(np.asarray([compute]))[0]

    def minimum(self, compute: float) -> dict[str, float]:
        """The best size at one compute; `at_edge` is 1 where it is the smallest or the largest of the ladder."""
        _sizes, losses = self.at(compute)
        best = int(losses.argmin())
        return {
            "flops": float(compute),
            "parameters": float(self.sizes[best]),
            "tokens": float(compute / self.flops[best]),
            "loss": float(losses[best]),
            "at_edge": float(best in (0, GRID - 1)),
        }

    def _all(self, compute: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        law = self.law if values is None else LossSurface(values, self.law.draws, self.law.unit, self.law.points)
        tokens = compute[:, None] / self.flops[None]
        return law.predict(np.broadcast_to(self.sizes, tokens.shape), tokens)


@dataclass(frozen=True)
class Multiplier:
    """With which share of the compute of `second` the run `first` reaches its loss, at several computes, with a band;
    infinite where it does not within 32 times as much."""

    first: str
    second: str
    flops: tuple[float, ...] = ()
    ratio: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    reason: str = field(default="")

    @classmethod
    def refused(cls, first: str, second: str) -> Multiplier:
        """Of two runs of which one has no law."""
        return cls(first, second, reason="one of them has no law")

    @property
    def words(self) -> str:
        """The ratio at the lowest and the highest compute."""
        if self.reason:
            return f"{self.first} against {self.second}: no multiplier of compute: {self.reason}"
        ends = [
            f"{self.ratio[i]:.2f} [{self.low[i]:.2f}, {self.high[i]:.2f}]{of} at {quantity(self.flops[i])}FLOPs"
            for i, of in ((0, " of its compute"), (-1, ""))
        ]
        return (
            f"{self.first} reaches the loss of {self.second} with {ends[0]} and {ends[1]}, both at "
            "their best sizes by the laws"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        numbers = {key: list(getattr(self, key)) for key in ("flops", "ratio", "low", "high")}
        return {"first": self.first, "second": self.second, **numbers, "reason": self.reason or None}


def multipliers(
    first: str, second: str, one: Frontier, other: Frontier, measured: Sequence[float] | np.ndarray
) -> Multiplier:
    """The multiplier at computes across those that were `measured`; the band is over both bootstraps."""
    computes = np.geomspace(np.min(measured), np.max(measured), COMPUTES)
    follow = np.geomspace(computes[0] / REACH, computes[-1] * REACH, 4 * GRID)

    def ratio(mine: np.ndarray | None, theirs: np.ndarray | None) -> np.ndarray:
        curve, targets = one.losses(follow, mine), other.losses(computes, theirs)
        # Losses fall with compute, which np.interp wants rising.
        reached = np.exp(np.interp(-targets, -curve, np.log(follow), right=np.inf))
        return reached / computes

    draws = np.asarray([ratio(a, b) for a, b in zip(one.law.draws, other.law.draws, strict=False)])
    low, high = (np.sort(draws, axis=0)[i] for i in (int(0.025 * len(draws)), -1 - int(0.025 * len(draws))))
    best = ratio(None, None)
    numbers = [tuple(values.tolist()) for values in (computes, best, low, high)]
    return Multiplier(first, second, numbers[0], numbers[1], numbers[2], numbers[3])
