"""Statistics of a comparison: intervals over seeds, paired differences, correction for many pairs.

Runs that share a seed share their data order, so architectures are compared seed by seed: d_s = a_s - b_s, a t
interval on the mean of d, and a paired t-test. With k architectures there are k(k-1)/2 pairs; Holm's step-down
correction over *all* of them keeps the chance of even one false "better" at 5 %.

The rules for few seeds: one seed gives a number and no interval ("one seed: no interval"); two give a t interval
with one degree of freedom (12.7 standard errors wide to each side: honest, rarely decisive).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

LEVEL = 0.95
BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """Mean of `n` values with an interval for it; `low` and `high` are None where n < 2 allows none."""

    mean: float
    low: float | None
    high: float | None
    n: int
    std: float | None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, the number after ±; None without an interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's t interval for the mean: mean ± t_{n-1} s / sqrt(n). ValueError without a value."""
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("t_interval: needs at least one value")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, None, None, 1, None)
    from scipy.stats import t

    std = float(x.std(ddof=1))
    margin = float(t.ppf(0.5 + level / 2, x.size - 1)) * std / math.sqrt(x.size)
    return Interval(mean, mean - margin, mean + margin, int(x.size), std)


def bootstrap_interval(
    values: Sequence[float], level: float = LEVEL, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval for the mean. It assumes no normality, and is too narrow below about 8 values."""
    x = np.asarray(values, dtype=np.float64)
    exact = t_interval(values, level)
    if x.size < 2:
        return exact
    draws = np.random.default_rng(seed).integers(0, x.size, size=(samples, x.size))
    low, high = np.quantile(x[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return replace(exact, low=float(low), high=float(high))


@dataclass(frozen=True)
class PairedDifference:
    """`first` minus `second` on each seed that both have, in the metric's unit.

    `p_value` is the paired t-test's, `p_adjusted` after Holm's correction over `family` pairs; both are None where
    there is no spread to judge by.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    lower_is_better: bool
    p_value: float | None
    p_adjusted: float | None = None
    family: int = 1

    @cached_property
    def difference(self) -> Interval | None:
        """Mean difference with its t interval; None without a shared seed."""
        return t_interval(self.values) if self.values else None

    @property
    def bootstrap(self) -> Interval | None:
        """The same with the percentile bootstrap's interval."""
        return bootstrap_interval(self.values) if self.values else None

    @property
    def verdict(self) -> str:
        """'better' or 'worse' (of `first`), 'same', 'not distinguishable', 'one seed' or 'no shared seed'."""
        if self.difference is None:
            return "no shared seed"
        if self.difference.n == 1:
            return "one seed"
        if self.p_value is None:
            return "same" if self.difference.mean == 0 else "one seed"
        p = self.p_value if self.p_adjusted is None else self.p_adjusted
        if p > 1 - LEVEL:
            return "not distinguishable"
        return "better" if (self.difference.mean < 0) == self.lower_is_better else "worse"

    @property
    def words(self) -> str:
        """The verdict with its numbers: `better by 0.021 [0.012, 0.030]`."""
        if self.difference is None:
            return "no shared seed: not compared"
        difference = self.difference
        if self.verdict == "same":
            return "the same on every seed"
        if difference.low is None or difference.high is None or self.verdict == "one seed":
            why = "one seed: no interval" if difference.n == 1 else "the same difference on every seed: no interval"
            return f"{abs(difference.mean):.3g} {'lower' if difference.mean < 0 else 'higher'} ({why})"
        mean, low, high = difference.mean, difference.low, difference.high
        # Two digits of the half-width, but no more than four decimals where these show the mean.
        decimals = max(0, 1 - math.floor(math.log10((high - low) / 2)))
        decimals = min(decimals, 4) if abs(mean) >= 1e-3 else decimals
        if self.verdict == "not distinguishable":
            # The interval is of this pair alone; one without zero in it would contradict the verdict without a word.
            corrected = "" if low <= 0 <= high else f" after Holm over {self.family} pairs"
            return f"not distinguishable{corrected} ({mean:+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}])"
        if mean < 0:
            mean, low, high = -mean, -high, -low
        return f"{self.verdict} by {mean:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"

    def reversed(self) -> PairedDifference:
        """The same comparison seen from the other side: `second` minus `first`."""
        return replace(self, first=self.second, second=self.first, values=tuple(-value for value in self.values))

    def to_dict(self) -> dict[str, Any]:
        """Plain values with intervals, verdict and words, for JSON."""
        intervals = {
            name: None if interval is None else asdict(interval)
            for name, interval in (("difference", self.difference), ("bootstrap", self.bootstrap))
        }
        return {**asdict(self), **intervals, "verdict": self.verdict, "words": self.words}


def paired_difference(
    first: str,
    second: str,
    first_values: Mapping[int, float],
    second_values: Mapping[int, float],
    lower_is_better: bool = True,
) -> PairedDifference:
    """Compares two groups of runs, given as {seed: value}, on the seeds that both have."""
    seeds = tuple(sorted(first_values.keys() & second_values.keys()))
    values = tuple(first_values[seed] - second_values[seed] for seed in seeds)
    return PairedDifference(first, second, seeds, values, lower_is_better, _paired_p_value(values))


def _paired_p_value(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test; None where there is no spread to judge by."""
    # Equal differences on every seed mean that the seed changed nothing: one observation, however often it was made.
    if len(differences) < 2 or max(differences) - min(differences) <= 1e-12 * max(1.0, abs(differences[0])):
        return None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0.0).pvalue)


def all_pairs(groups: Mapping[str, Mapping[int, float]], lower_is_better: bool = True) -> list[PairedDifference]:
    """Every pair of groups ({name: {seed: value}}), with p values Holm-corrected over the pairs that have one."""
    names = list(groups)
    pairs = [
        paired_difference(a, b, groups[a], groups[b], lower_is_better)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    tested = [i for i, pair in enumerate(pairs) if pair.p_value is not None]
    for i, adjusted in zip(tested, holm([pairs[i].p_value or 0.0 for i in tested]), strict=True):
        pairs[i] = replace(pairs[i], p_adjusted=adjusted, family=len(tested))
    return pairs


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]
