"""Power of the t-tests over seeds: what a number of seeds can show, and how many seeds a difference needs.

The power at a true mean difference d with standard deviation s over n seeds is that of the noncentral t distribution
with n - 1 degrees of freedom and noncentrality d sqrt(n) / s. With a family of m pairs the level is divided by m, the
strictest step of Holm's correction, so the power printed is the least that the pair has; where seeds are added as they
are needed, each look has a level of its own (`analysis.sequential.look_levels`). The spread is itself an estimate; from
three seeds it may be off by a factor of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from hf_arch.analysis.counts import Level, constant_level, least_seeds
from hf_arch.analysis.stats import ALPHA, PairedDifference, have_spread, t_interval

POWER = 0.8
MOST_SEEDS = 1000
QUANTILES = 2000
ALONE = constant_level(ALPHA)
"""The level of a test that is the only one of its family."""


def power(difference: float, std: float, seeds: int, family: float = 1) -> float:
    """Chance that the two-sided test finds `difference` (in the unit of `std`); ValueError below two seeds."""
    if seeds < 2 or not std > 0 or family < 1:
        raise ValueError(f"power: needs seeds >= 2, std > 0 and family >= 1, not {seeds}, {std} and {family}")
    from scipy.stats import norm

    # The noncentral t as a mean over the spread's own distribution: scipy's nct is NaN far in the tails.
    scale, shift = _margins(ALPHA / family / 2, seeds), abs(difference) * math.sqrt(seeds) / std
    return float((norm.sf(scale - shift) + norm.cdf(-scale - shift)).mean())


def within_power(bound: float, difference: float, std: float, seeds: int, family: float = 1) -> float:
    """Chance that two one-sided tests show a true `difference` to be within `bound`."""
    from scipy.stats import norm

    margin = bound * math.sqrt(seeds) / std - _margins(ALPHA / family, seeds)
    shift = difference * math.sqrt(seeds) / std
    return float(np.maximum(norm.cdf(margin - shift) - norm.cdf(-margin - shift), 0.0).mean())


def _margins(tail: float, seeds: int) -> np.ndarray:
    """Student's t of a one-sided level `tail` times the spread of a sample over the true one, at its quantiles."""
    from scipy.stats import chi2, t

    spread = np.sqrt(chi2.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, seeds - 1) / (seeds - 1))
    return float(t.isf(tail, seeds - 1)) * spread


def smallest_difference(std: float, seeds: int, family: float = 1) -> float:
    """The difference that `seeds` seeds show with a chance of 80 %, in the unit of `std`."""
    return _smallest(lambda d: power(d, std, seeds, family), std)


def _smallest(power_of: Callable[[float], float], std: float) -> float:
    from scipy.optimize import brentq

    high = std
    while power_of(high) < POWER:
        high *= 2
    return float(brentq(lambda d: power_of(d) - POWER, 0.0, high, xtol=1e-6 * std))


def seeds_needed(difference: float, std: float, level: Level = ALONE) -> int | None:
    """The fewest seeds that show `difference` with a chance of 80 %; None above 1000."""
    return _fewest(lambda n: power(difference, std, n, ALPHA / level(n)))


def _fewest(power_of: Callable[[int], float]) -> int | None:
    low, high = 1, 2
    while power_of(high) < POWER:
        low, high = high, high * 2
        if high > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= POWER else (middle, high)
    return high


def power_words(pair: PairedDifference, level: Level | None = None) -> str:
    """What the seeds of a pair could have shown, in one sentence; empty where there is no spread to say it from.
    level: of the test at a number of seeds; by default 5 % over the pair's family."""
    level = level or constant_level(ALPHA / pair.family)
    if pair.counts is not None:
        fewest = least_seeds(level)
        return "" if fewest is None else f"All seeds against none is found with {fewest} a side"
    return distance_power_words(pair.values, 0.0, level, "a difference of {:.3g}")


def distance_power_words(values: Sequence[float], centre: float, level: Level, found: str) -> str:
    """The same of values and the number that they are tested against; `found` says a distance from it."""
    if len(values) < 2 or not have_spread(values):
        return ""
    n, (mean, std) = len(values), _mean_and_spread(values)
    least, distance = smallest_difference(std, n, ALPHA / level(n)), abs(mean - centre)
    needed = seeds_needed(distance, std, level) if distance else None
    said = found.format(least)
    return f"{n} seeds show {said} with 80 % power at this spread; one of {distance:.3g} needs {_count(needed)}"


def within_power_words(values: Sequence[float], bound: float, centre: float, level: Level, what: str) -> str:
    """How near these seeds can show two equal sides to be, or values to a number, and how many seeds the bound of a
    claim needs at the distance that was seen; `what` names that distance."""
    if len(values) < 2 or not have_spread(values):
        return ""
    n, (mean, std) = len(values), _mean_and_spread(values)
    distance = abs(mean - centre)
    least = _smallest(lambda b: within_power(b, 0.0, std, n, ALPHA / level(n)), std)
    is_inside = distance < bound
    if is_inside:
        needed = _fewest(lambda n: within_power(bound, distance, std, n, ALPHA / level(n)))
    else:
        needed = seeds_needed(distance - bound, std, level) if distance > bound else None
    return (
        f"{n} seeds show {what} of 0 to be within {least:.3g} with 80 % power at this spread; that one of "
        f"{distance:.3g} is {'within' if is_inside else 'outside'} {bound:g} needs {_count(needed)}"
    )


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    found = t_interval(values)
    assert found.std is not None
    return found.mean, found.std


def _count(seeds: int | None) -> str:
    return f"{f'more than {MOST_SEEDS}' if seeds is None else seeds} seeds"
