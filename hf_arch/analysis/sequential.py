"""Looking after every seed: what `experiment.seeds: auto` costs the tests, as alpha spending.

Claims are tested after least, least + 1, ..., most seeds. With p_k the p value of the fixed test at look k and weights
w_k = (n_k / most)^2, the statistic is m = min_k p_k / w_k over the looks so far, and a claim is decided where
G(m) <= alpha, G being the distribution of min over *all* looks without a true difference. So the early looks spend
little of the 5 %, the last ones most, and the whole is 5 % wherever the seeds end. For t-tests G does not depend on the
spread, and is found from 100,000 simulated paths (fixed seed; three standard errors are added); far in its tail, for
exact tests of counts, and where a seed is missing, the sum m (w_1 + w_2 + ...) bounds it, whatever the tests are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from hf_arch.analysis.claim_tests import ClaimTest, Outcome
from hf_arch.analysis.counts import Level, constant_level
from hf_arch.analysis.stats import ALPHA, PairedDifference, corrected, t_test
from hf_arch.recipe.seeds import AutoSeeds

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PATHS = 100_000


def weights(plan: AutoSeeds) -> np.ndarray:
    """How much of the level each look has, the last 1: float64 [looks]."""
    return (np.asarray(plan.looks, dtype=np.float64) / plan.most) ** 2


@lru_cache(maxsize=32)
def _null_minima(plan: AutoSeeds) -> np.ndarray:
    """min_k p_k / w_k of simulated paths without a true difference, in order: float64 [PATHS]."""
    draws = np.random.default_rng(0).standard_normal((PATHS, plan.most))
    p = np.stack([t_test(draws[:, :count]) for count in plan.looks], axis=1)
    return np.sort((p / weights(plan)).min(axis=1))


def sequential_p(plan: AutoSeeds, minimum: ArrayLike, exact: bool = True) -> np.ndarray:
    """G(minimum), the p value after looking, of minima [...]; by the sum over the looks where not `exact`."""
    bound = np.minimum(1.0, np.asarray(minimum) * weights(plan).sum())
    if not exact:
        return bound
    count = np.searchsorted(_null_minima(plan), minimum, side="right")
    return np.minimum(bound, (count + 1 + 3 * np.sqrt(count + 1)) / PATHS)


@lru_cache(maxsize=4096)
def look_level(plan: AutoSeeds, look: int, alpha: float = ALPHA, exact: bool = True) -> float:
    """The level of the fixed test at a look (counted from 0) that spends `alpha` in all."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sequential_p(plan, middle, exact) <= alpha else (low, middle)
    return max(low * float(weights(plan)[look]), 1e-300)


def look_levels(plan: AutoSeeds, level: Level, exact: bool = True) -> Level:
    """The level of the fixed test at a number of seeds, where looking spends `level` in all: that of its look, and past
    the most seeds that of the last."""
    return lambda seeds: look_level(plan, min(max(seeds, plan.least), plan.most) - plan.least, level(seeds), exact)


def spent(plan: AutoSeeds) -> list[float]:
    """How much of `ALPHA` is spent after each look."""
    draws = np.random.default_rng(1).standard_normal((PATHS, plan.most))
    p = np.stack([t_test(draws[:, :count]) for count in plan.looks], axis=1)
    levels = np.array([look_level(plan, look) for look in range(len(plan.looks))])
    return [float(share) for share in (np.cumsum(p <= levels, axis=1) > 0).mean(axis=0)]


@lru_cache(maxsize=32)
def spending_words(plan: AutoSeeds) -> str:
    """The plan in words, for the report."""
    shares = ", ".join(f"{share:.1%}" for share in spent(plan))
    return (
        f"Seeds were added one at a time, from {plan.least} to at most {plan.most}, while a claim was undecided; of "
        f"the 5 % for a false verdict, {shares} are spent by the looks at {', '.join(map(str, plan.looks))} seeds."
    )


def at_its_look(plan: AutoSeeds, pair: PairedDifference) -> PairedDifference:
    """A pair of the table at the level of the look that its seeds are: who stops where claims are decided has looked at
    the table each time too."""
    if pair.p_value is None:
        return pair
    level = look_levels(plan, constant_level(ALPHA / pair.factor), pair.counts is None)
    return corrected(pair, ALPHA / level(len(pair.values)), pair.family)


def over_looks(plan: AutoSeeds, tests: Sequence[ClaimTest], exact: bool) -> ClaimTest:
    """The test of one claim after the looks so far, `tests` being the fixed ones at each. Where it rejects, the claim
    is decided as at the look that rejected."""
    shares = weights(plan)
    scaled = [np.inf if test.p_value is None else test.p_value / shares[look] for look, test in enumerate(tests)]
    if not np.isfinite(min(scaled)):
        return tests[-1]
    best = int(np.argmin(scaled))

    def words(outcome: Outcome, factor: float, level: Level) -> str:
        look = best if outcome in ("supported", "contradicted") else len(tests) - 1
        same = ALPHA / look_level(plan, look, ALPHA / factor, exact)
        text = tests[look].words(outcome, same, look_levels(plan, level, exact))
        more = f"; {plan.looks[len(tests) - 1]} seeds now" if look < len(tests) - 1 else ""
        return f"{text}, at the look after {plan.looks[look]} of at most {plan.most} seeds{more}"

    return replace(tests[best], p_value=float(sequential_p(plan, scaled[best], exact)), words=words)
