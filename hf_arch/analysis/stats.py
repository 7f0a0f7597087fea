"""Statistics of a comparison: intervals over seeds, paired differences, correction for many pairs.

Runs that share a seed share their data order, so architectures are compared seed by seed: d_s = a_s - b_s, a t
interval on the mean of d, and a paired t-test. With k architectures there are k(k-1)/2 pairs; Holm's step-down
correction over *all* of them keeps the chance of even one false "better" at 5 %. Claims are a family of their own
(`hf_arch.analysis.verdicts`). Holm multiplies each p by a factor between 1 and the size of its family; the interval at
level 1 - 5 % / factor leaves out zero where the corrected test rejects, and only there.

The rules for few seeds: one seed gives a number and no interval ("one seed: no interval"); two give a t interval
with one degree of freedom (12.7 standard errors wide to each side: honest, rarely decisive).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_arch.analysis.counts import Counts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LEVEL = 0.95
ALPHA = 0.05
"""Chance of even one false verdict in a family."""
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


def bootstrap_interval(values: Sequence[float], samples: int = BOOTSTRAP_SAMPLES) -> Interval:
    """Percentile bootstrap interval for the mean. It assumes no normality, and is too narrow below about 8 values."""
    x = np.asarray(values, dtype=np.float64)
    exact = t_interval(values, LEVEL)
    if x.size < 2:
        return exact
    draws = np.random.default_rng(0).integers(0, x.size, size=(samples, x.size))
    low, high = np.quantile(x[draws].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return replace(exact, low=float(low), high=float(high))


@dataclass(frozen=True)
class PairedDifference:
    """`first` minus `second` on each seed that both have, in the metric's unit.

    `p_value` is the paired t-test's, `p_adjusted` after Holm's correction, which multiplied it by `factor`, over a
    `family` of tests; both are None where there is no spread to judge by. `counts`: where some seeds solved a probe, p
    is that of the exact test on how many did, and the verdict goes by that.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    lower_is_better: bool
    p_value: float | None
    p_adjusted: float | None = None
    family: int = 1
    factor: float = 1.0
    counts: Counts | None = None

    @cached_property
    def difference(self) -> Interval | None:
        """Mean difference with the 95 % t interval of this pair alone; None without a shared seed."""
        return t_interval(self.values) if self.values else None

    @cached_property
    def interval(self) -> Interval | None:
        """The same at the level at which Holm's procedure tests the pair in its family."""
        return t_interval(self.values, 1 - ALPHA / self.factor) if self.values else None

    @property
    def bootstrap(self) -> Interval | None:
        """The same with the percentile bootstrap's interval."""
        return bootstrap_interval(self.values) if self.values else None

    @property
    def verdict(self) -> str:
        """'better' or 'worse' (of `first`), 'same', 'undecided', 'one seed' or 'no shared seed'."""
        if self.difference is None:
            return "no shared seed"
        if self.difference.n == 1:
            return "one seed"
        if self.p_value is None:
            return "same" if self.difference.mean == 0 else "one seed"
        p = self.p_value if self.p_adjusted is None else self.p_adjusted
        if p > 1 - LEVEL:
            return "undecided"
        if self.counts is not None:
            return "better" if self.counts.gap > 0 else "worse"
        return "better" if (self.difference.mean < 0) == self.lower_is_better else "worse"

    @property
    def words(self) -> str:
        """The verdict with its numbers: `better by 0.021 [0.012, 0.030]`."""
        return self._verdict_with(
            "" if self.counts is None else f"{self.counts.words(1 - ALPHA / self.factor)}, Barnard's exact test"
        )

    @property
    def brief(self) -> str:
        """`words` for a row of a table: of seeds that are counted, without intervals and the name of the test."""
        return self._verdict_with("" if self.counts is None else self.counts.words())

    def _verdict_with(self, counted: str) -> str:
        if self.difference is None:
            return "no shared seed: not compared"
        difference = self.difference
        if self.counts is not None and difference.n > 1:
            return f"{self.verdict} ({counted}; mean {difference.mean:+.3g})"
        if self.verdict == "same":
            return "the same on every seed"
        if difference.low is None or difference.high is None or self.verdict == "one seed":
            why = "one seed: no interval" if difference.n == 1 else "the same difference on every seed: no interval"
            return f"{abs(difference.mean):.3g} {'lower' if difference.mean < 0 else 'higher'} ({why})"
        assert self.interval is not None and self.interval.low is not None and self.interval.high is not None
        mean, low, high = difference.mean, self.interval.low, self.interval.high
        # Two digits of the half-width, but no more than four decimals where these show the mean.
        decimals = max(0, 1 - math.floor(math.log10((high - low) / 2)))
        decimals = min(decimals, 4) if abs(mean) >= 1e-3 else decimals
        if self.verdict == "undecided":
            own = max(decimals, min(4, -math.floor(math.log10(abs(mean))))) if mean else decimals  # no "-0"
            return f"undecided ({mean:+,.{own}f} [{low:+,.{decimals}f}, {high:+,.{decimals}f}])"
        if mean < 0:
            mean, low, high = -mean, -high, -low
        return f"{self.verdict} by {mean:,.{decimals}f} [{low:,.{decimals}f}, {high:,.{decimals}f}]"

    def reversed(self) -> PairedDifference:
        """The same comparison seen from the other side: `second` minus `first`."""
        counts = None if self.counts is None else self.counts.reversed()
        values = tuple(-value for value in self.values)
        return replace(self, first=self.second, second=self.first, values=values, counts=counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with intervals, verdict and words, for JSON."""
        intervals = {
            name: None if interval is None else asdict(interval)
            for name, interval in (
                ("difference", self.difference),
                ("interval", self.interval),
                ("bootstrap", self.bootstrap),
            )
        }
        return {**asdict(self), **intervals, "verdict": self.verdict, "words": self.words}


def paired_difference(
    first: str,
    second: str,
    first_values: Mapping[int, float],
    second_values: Mapping[int, float],
    lower_is_better: bool = True,
    solved_at: float | None = None,
) -> PairedDifference:
    """Compares two groups of runs, given as {seed: value}, on the seeds that both have.

    solved_at: the value from which a seed counts as solved; None where there is no such thing.
    """
    seeds = tuple(sorted(first_values.keys() & second_values.keys()))
    values = tuple(first_values[seed] - second_values[seed] for seed in seeds)
    counts = None
    if solved_at is not None and seeds:
        solved = [[value >= solved_at for value in side.values()] for side in (first_values, second_values)]
        if any(map(any, solved)):
            counts = Counts(sum(solved[0]), len(solved[0]), sum(solved[1]), len(solved[1]), solved_at)
    p = counts.p_value if counts is not None and len(seeds) > 1 else _paired_p_value(values)
    return PairedDifference(first, second, seeds, values, lower_is_better, p, counts=counts)


def _paired_p_value(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test; None where there is no spread to judge by."""
    # Equal differences on every seed mean that the seed changed nothing: one observation, however often it was made.
    return float(t_test(differences)) if len(differences) > 1 and have_spread(differences) else None


def paired_on_means(pair: PairedDifference) -> PairedDifference:
    """The same pair judged by its mean difference, whatever was solved."""
    return replace(pair, counts=None, p_value=_paired_p_value(pair.values), p_adjusted=None, family=1, factor=1.0)


def have_spread(values: Sequence[float]) -> bool:
    """Whether the values differ by more than rounding."""
    return max(values) - min(values) > 1e-12 * max(1.0, abs(values[0]))


def t_test(values: ArrayLike, centre: float = 0.0) -> np.ndarray:
    """Two-sided p of the t-test of a mean `centre`: [...] from values [..., n], n >= 2. Where all n are equal, p is 1
    for values at the centre, else 0."""
    return 2 * _above(np.abs(_t(values, centre)), np.shape(values)[-1])


def within_test(values: ArrayLike, bound: float, centre: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """p of "the mean lies within `bound` of `centre`", by two one-sided t-tests, and p of "it lies outside", by a
    two-sided one: each [...] from values [..., n], n >= 2."""
    n = np.shape(values)[-1]
    high, low = _t(values, centre + bound), _t(values, centre - bound)
    inside = np.maximum(_above(-high, n), _above(low, n))
    outside = 2 * np.minimum(_above(high, n), _above(-low, n))
    return inside, np.minimum(1.0, outside)


def _t(values: ArrayLike, centre: float) -> np.ndarray:
    """t of the mean against `centre`."""
    x = np.asarray(values, dtype=np.float64)
    error = x.std(axis=-1, ddof=1) / math.sqrt(x.shape[-1])
    gap = x.mean(axis=-1) - centre
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap == 0, 0.0, gap / error)


def _above(t: np.ndarray, n: int) -> np.ndarray:
    """Chance of a t above `t` with n - 1 degrees of freedom."""
    from scipy.special import stdtr

    return np.asarray(stdtr(n - 1, -t))


def all_pairs(
    groups: Mapping[str, Mapping[int, float]],
    lower_is_better: bool = True,
    solved_at: float | None = None,
    apart: Collection[str] = (),
) -> list[PairedDifference]:
    """Every pair of groups ({name: {seed: value}}), with p values Holm-corrected over the pairs that have one. Pairs
    with a group that is named in `apart` are a family of their own."""
    names = list(groups)
    pairs = [
        paired_difference(a, b, groups[a], groups[b], lower_is_better, solved_at)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    for own in (True, False):
        tested = [
            i
            for i, pair in enumerate(pairs)
            if pair.p_value is not None and own == (pair.first not in apart and pair.second not in apart)
        ]
        factors = holm_factors([pairs[i].p_value or 0.0 for i in tested])
        for i, factor in zip(tested, factors.tolist(), strict=True):
            pairs[i] = corrected(pairs[i], factor, len(tested))
    return pairs


def corrected(pair: PairedDifference, factor: float, family: int) -> PairedDifference:
    """The pair as one of a `family` of tests, in which Holm's correction multiplies its p by `factor`."""
    p = None if pair.p_value is None else min(1.0, factor * pair.p_value)
    return replace(pair, p_adjusted=p, family=family, factor=factor)


def holm_factors(p_values: ArrayLike) -> np.ndarray:
    """What Holm's step-down correction multiplies each p value by: float64 [..., m] from p values [..., m].

    In order of size the p values are multiplied by m, m - 1, ..., 1, and none is less than the one before it.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1)
    steps = np.arange(p.shape[-1], 0, -1, dtype=np.float64)
    adjusted = np.maximum.accumulate(ranked * steps, axis=-1)
    factors = np.divide(adjusted, ranked, out=np.broadcast_to(steps, p.shape).copy(), where=ranked > 0)
    found = np.empty_like(p)
    np.put_along_axis(found, order, np.clip(factors, 1.0, p.shape[-1]), axis=-1)  # rounding may pass either
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    return [float(value) for value in np.minimum(1.0, p * holm_factors(p))] if p.size else []
