"""Power of the paired t-test over seeds: what a number of seeds can show, and how many seeds a difference needs.

The power at a true mean difference d with standard deviation s over n seeds is that of the noncentral t distribution
with n - 1 degrees of freedom and noncentrality d sqrt(n) / s. With a family of m pairs the level is divided by m, the
strictest step of Holm's correction, so the power printed is the least that the pair has. The spread is itself an
estimate; from three seeds it may be off by a factor of two.
"""

from __future__ import annotations

import math

import numpy as np

from hf_arch.analysis.counts import least_seeds
from hf_arch.analysis.stats import LEVEL, PairedDifference

POWER = 0.8
MOST_SEEDS = 1000
QUANTILES = 2000


def power(difference: float, std: float, seeds: int, family: int = 1) -> float:
    """Chance that the two-sided test finds `difference` (in the unit of `std`); ValueError below two seeds."""
    if seeds < 2 or not std > 0 or family < 1:
        raise ValueError(f"power: needs seeds >= 2, std > 0 and family >= 1, not {seeds}, {std} and {family}")
    from scipy.stats import chi2, norm, t

    critical = float(t.ppf(1 - (1 - LEVEL) / family / 2, seeds - 1))
    shift = abs(difference) * math.sqrt(seeds) / std
    # The noncentral t as a mean over the spread's own distribution: scipy's nct is NaN far in the tails.
    scale = critical * np.sqrt(chi2.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, seeds - 1) / (seeds - 1))
    return float((norm.sf(scale - shift) + norm.cdf(-scale - shift)).mean())


def smallest_difference(std: float, seeds: int, family: int = 1) -> float:
    """The difference that `seeds` seeds show with a chance of 80 %, in the unit of `std`."""
    from scipy.optimize import brentq

    high = std
    while power(high, std, seeds, family) < POWER:
        high *= 2
    return float(brentq(lambda d: power(d, std, seeds, family) - POWER, 0.0, high, xtol=1e-6 * std))


def seeds_needed(difference: float, std: float, family: int = 1) -> int | None:
    """The fewest seeds that show `difference` with a chance of 80 %; None above 1000."""
    low, high = 1, 2
    while power(difference, std, high, family) < POWER:
        low, high = high, high * 2
        if high > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, std, middle, family) >= POWER else (middle, high)
    return high


def power_words(pair: PairedDifference) -> str:
    """What the seeds of a pair could have shown, in one sentence; empty where there is no spread to say it from."""
    difference = pair.difference
    if pair.counts is not None:
        fewest = least_seeds((1 - LEVEL) / pair.factor)
        return "" if fewest is None else f"All seeds against none is found with {fewest} a side"
    if difference is None or not difference.std or pair.p_value is None:
        return ""
    least = smallest_difference(difference.std, difference.n, pair.family)
    needed = seeds_needed(difference.mean, difference.std, pair.family) if difference.mean else None
    count = f"more than {MOST_SEEDS}" if needed is None else f"{needed}"
    return (
        f"{difference.n} seeds show a difference of {least:.3g} with 80 % power at this spread; "
        f"one of {abs(difference.mean):.3g} needs {count} seeds"
    )
