"""Exact statistics of counts: how many of n seeds solved a task, or reached a number, on each of two sides.

A task that is solved or not gives values at two levels, of which neither the mean nor its spread says much over a few
seeds: a t-test on them errs more often than it says. Barnard's test is exact whatever the share of seeds that solve it
is, and needs fewer seeds than Fisher's (3 of 3 against 0 of 3: p = 0.031, by Fisher 0.1). Seeds that the two sides
share make it conservative. A share of seeds has the interval of Clopper and Pearson.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Level = Callable[[int], float]
"""The level of a test at a number of seeds: one for all, or where seeds are added as needed that of each look."""
MOST_SEEDS = 40
GRID = np.linspace(0.0, 1.0, 2001)


@dataclass(frozen=True)
class Counts:
    """`first` of `first_n` seeds of one side reached `threshold`, `second` of `second_n` of the other."""

    first: int
    first_n: int
    second: int
    second_n: int
    threshold: float

    @property
    def p_value(self) -> float:
        """Two-sided p of Barnard's exact test of equal chances."""
        return barnard(self.first, self.first_n, self.second, self.second_n)

    @property
    def gap(self) -> float:
        """How much larger the share of the first side is."""
        return self.first / self.first_n - self.second / self.second_n

    def reversed(self) -> Counts:
        """The same from the other side."""
        return Counts(self.second, self.second_n, self.first, self.first_n, self.threshold)

    def words(self, level: float | None = None) -> str:
        """`3 of 3 seeds against 0 of 3 reach 0.99`; with a level also intervals, `3 of 3 seeds [0.29, 1.00]`."""
        first, second = (
            f"{count} of {n}{of}"
            + ("" if level is None else " [{:.2f}, {:.2f}]".format(*clopper_pearson(count, n, level)))
            for count, n, of in ((self.first, self.first_n, " seeds"), (self.second, self.second_n, ""))
        )
        return f"{first} against {second} reach {self.threshold:g}"


@lru_cache(maxsize=4096)
def barnard(first: int, first_n: int, second: int, second_n: int) -> float:
    """Two-sided p of Barnard's exact test on `first` of `first_n` against `second` of `second_n`.

    Of all tables those count whose score statistic, the difference of shares over its pooled error, is at least as far
    from 0 as the one seen; p is their chance at the common share that makes it largest, which is looked for on a grid
    (scipy's `barnard_exact` finds the same, or less, where its search stops at a lower peak).
    """
    from scipy.stats import binom

    k, m = np.arange(first_n + 1)[:, None], np.arange(second_n + 1)[None, :]
    pooled = (k + m) / (first_n + second_n)
    error = np.sqrt(pooled * (1 - pooled) * (1 / first_n + 1 / second_n))
    gap = np.abs(k / first_n - m / second_n)
    score = np.divide(gap, error, out=np.zeros_like(gap), where=error > 0)
    extreme = score >= score[first, second] * (1 - 1e-9)
    chances = [binom.pmf(np.arange(n + 1), n, GRID[:, None]) for n in (first_n, second_n)]
    return min(1.0, float(np.einsum("gk,gm,km->g", *chances, extreme).max()))


def clopper_pearson(count: int, n: int, level: float) -> tuple[float, float]:
    """The exact interval for a share of which `count` of `n` were seen."""
    from scipy.stats import binomtest

    interval = binomtest(count, n).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def share_test(count: int, n: int, share: float) -> float:
    """Two-sided p of a true share `share` where `count` of `n` were seen: twice the smaller exact tail, dual to the
    interval of Clopper and Pearson."""
    from scipy.stats import binom

    return min(1.0, 2 * float(min(binom.sf(count - 1, n, share), binom.cdf(count, n, share))))


def constant_level(level: float) -> Level:
    """One level, however many seeds there are."""
    return lambda _seeds: level


def least_seeds(level: Level) -> int | None:
    """The fewest seeds a side with which all against none has a p of at most the level; None above 40."""
    return next((n for n in range(2, MOST_SEEDS + 1) if barnard(n, n, 0, n) <= level(n)), None)


def least_for_share(share: float, at_least: bool, level: Level) -> int | None:
    """The fewest seeds that show a share to be at least (at most) `share`, where all (none) of them reach the number;
    None above 1000."""
    chance = share if at_least else 1 - share
    return next((n for n in range(2, 1001) if 2 * chance**n <= level(n)), None)
