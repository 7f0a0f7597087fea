"""The exchange rate of two runs: with which share of B's tokens, training FLOPs or seconds A reaches B's loss.

Read from curves of validation losses on the same rows: how far A's curve comes down to the loss at the end of B's, over
how far B's own comes down to it. The interval is a bootstrap over the seeds that both have, drawn in pairs:
Student's t times the standard deviation of the logarithm over the resamples, widened by sqrt(n / (n - 1)), which is the
t interval itself where the logarithm is a mean over seeds. Percentiles of so few seeds end at the outermost seed: with
three they held the ratio in 79 % of simulated studies.

Source: Hesterberg, What Teachers Should Know about the Bootstrap (2015), sections 4.2 and 4.4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_arch.analysis.curves import first_reach, non_increasing
from hf_arch.analysis.stats import LEVEL

MIN_SEEDS = 3
MOST_ENUMERATED = 5
RESAMPLES = 1000
AXES = {"tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds"}
"""The axes by their keys, as words."""


@dataclass(frozen=True)
class ExchangeRate:
    """`first` reaches the loss of `second` with `ratio` of what that takes on `axis`.

    high is infinite where it does not reach it in more resamples than such an interval leaves out, low 0 where it is
    there before its first evaluation in as many. `at_most`: it is there before its first evaluation, and the ratio is
    that of this one.
    Without a ratio, `reason` says why: that it never gets there, or what keeps the curves from being compared.
    """

    first: str
    second: str
    axis: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    at_most: bool = False

    @property
    def share(self) -> str:
        """`0.61 [0.5, 0.7] of its tokens`."""
        assert self.ratio is not None and self.low is not None and self.high is not None
        high = f"{self.high:.2f}" if math.isfinite(self.high) else "never within its budget"
        bound = "at most " if self.at_most else ""
        return f"{bound}{self.ratio:.2f} [{self.low:.2f}, {high}] of its {AXES[self.axis]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; an interval without an upper end has `high` None and `open` true."""
        high = self.high if self.high is not None and math.isfinite(self.high) else None
        return {
            "first": self.first,
            "second": self.second,
            "axis": self.axis,
            "ratio": self.ratio,
            "low": self.low,
            "high": high,
            "open": self.ratio is not None and high is None,
            "at_most": self.at_most,
            "reason": self.reason or None,
        }


@dataclass(frozen=True)
class SeedCurves:
    """Curves of one group over the same seeds: tokens [n] and losses [seeds, n], both float64, and what a token costs
    each seed in FLOPs and in seconds ([seeds]; None where it is not known)."""

    tokens: np.ndarray
    losses: np.ndarray
    flops: np.ndarray | None
    seconds: np.ndarray | None

    def cost(self, axis: str, weights: np.ndarray) -> float | None:
        """What a token costs on `axis`, for seeds of these weights."""
        if axis == "tokens":
            return 1.0
        per_token = self.flops if axis == "flops" else self.seconds
        return None if per_token is None else float(weights @ per_token)


def exchange_rates(first: str, second: str, one: SeedCurves, other: SeedCurves) -> list[ExchangeRate]:
    """The rate on each axis. The curves are of the same seeds in the same order, comparable, on the same rows."""
    seeds = len(one.losses)
    if seeds < MIN_SEEDS:
        reason = f"{seeds} shared seed{'' if seeds == 1 else 's'}; a bootstrap needs at least {MIN_SEEDS}"
        return [ExchangeRate(first, second, axis, reason=reason) for axis in AXES]
    everyone = np.full(seeds, 1 / seeds)
    if _reached(other, other, everyone) <= other.tokens[0]:
        reason = f"the loss of {second} does not fall from its first evaluation to its last"
        return [ExchangeRate(first, second, axis, reason=reason) for axis in AXES]
    if not math.isfinite(_tokens_ratio(one, other, everyone)):
        reason = f"{first} never reaches the loss of {second} within its budget"
        return [ExchangeRate(first, second, axis, reason=reason) for axis in AXES]
    at_most = bool(_reached(one, other, everyone) <= one.tokens[0])
    draws = [(weights, count, _tokens_ratio(one, other, weights)) for weights, count in _resamples(seeds)]
    found = []
    for axis, words in AXES.items():
        ratio = _ratio(one, other, axis, everyone, _tokens_ratio(one, other, everyone))
        if ratio is None:
            found.append(ExchangeRate(first, second, axis, reason=f"{words} are not recorded"))
            continue
        values = np.asarray([_ratio(one, other, axis, weights, tokens) for weights, _count, tokens in draws])
        counts = np.asarray([count for _weights, count, _tokens in draws])
        earlier = np.asarray([_reached(one, other, weights) <= one.tokens[0] for weights, _count, _tokens in draws])
        low, high = _interval(ratio, values, earlier, counts / counts.sum(), seeds)
        found.append(ExchangeRate(first, second, axis, ratio, low, high, at_most=at_most))
    return found


def _tokens_ratio(one: SeedCurves, other: SeedCurves, weights: np.ndarray) -> float:
    """The share of tokens for the mean curves of seeds with these weights; infinite where `one` never gets there."""
    return _reached(one, other, weights) / _reached(other, other, weights)


def _reached(one: SeedCurves, other: SeedCurves, weights: np.ndarray) -> float:
    """The tokens at which the mean curve of `one` comes down to the loss at the end of that of `other`."""
    target = float(non_increasing(weights @ other.losses)[-1])
    return first_reach(one.tokens, weights @ one.losses, target)


def _ratio(one: SeedCurves, other: SeedCurves, axis: str, weights: np.ndarray, tokens: float) -> float | None:
    costs = one.cost(axis, weights), other.cost(axis, weights)
    return None if not costs[0] or not costs[1] else tokens * costs[0] / costs[1]


def _resamples(seeds: int) -> Iterator[tuple[np.ndarray, float]]:
    """Weights of the seeds in each resample, and how often it is drawn: all of them for few seeds."""
    if seeds <= MOST_ENUMERATED:
        for drawn in itertools.combinations_with_replacement(range(seeds), seeds):
            counts = np.bincount(drawn, minlength=seeds)
            orders = math.factorial(seeds) / math.prod(math.factorial(count) for count in counts.tolist())
            yield counts / seeds, orders
        return
    for counts in np.random.default_rng(0).multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES):
        yield counts / seeds, 1.0


def _interval(
    ratio: float, values: np.ndarray, earlier: np.ndarray, shares: np.ndarray, seeds: int
) -> tuple[float, float]:
    """The interval about `ratio` by the `values` of the resamples, each drawn in this share of cases: infinite where
    one never gets there, only bounded where it is there `earlier` than was looked. An end that too many of these leave
    open is; the other is then by the resamples on its own side."""
    from scipy.stats import norm, t

    reach = math.sqrt(seeds / (seeds - 1)) * float(t.ppf(0.5 + LEVEL / 2, seeds - 1))
    tail = float(norm.cdf(-reach))
    logs = np.log(values / ratio)
    never = np.isinf(values)
    known = ~never & ~earlier
    below, above = (known, known) if known.all() else (known & (logs <= 0), known & (logs >= 0))

    def factor(kept: np.ndarray) -> float:
        spread = math.sqrt(shares[kept] @ logs[kept] ** 2 / shares[kept].sum()) if kept.any() else 0.0
        return math.exp(reach * spread)

    low = 0.0 if shares[earlier].sum() > tail else ratio / factor(below)
    return low, math.inf if shares[never].sum() > tail else ratio * factor(above)
