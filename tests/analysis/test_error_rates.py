"""Error rates by simulation: no verdict is wrong more often than 5 %, and printed power is that of the tests.

Thousands of studies without a true difference (for `within`: with one at the margin), under noise that is normal, heavy
in its tails (Student's t with 3 degrees of freedom), or mostly common to all runs of a seed. The tests are those that
verdicts are made of, over a leading axis of studies. The slow form has 10,000 studies.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from hf_arch.analysis.claim_tests import difference_test, nearness_test
from hf_arch.analysis.counts import barnard
from hf_arch.analysis.item_tests import degrees_of_freedom, error_over_seeds_and_items, seeds_and_items
from hf_arch.analysis.power import ALONE, power, power_words
from hf_arch.analysis.sequential import look_level, over_looks, sequential_p, spent, weights
from hf_arch.analysis.stats import corrected, holm_factors, paired_difference, t_test, within_test
from hf_arch.recipe.seeds import AutoSeeds

STUDIES = [pytest.param(4_000), pytest.param(10_000, marks=pytest.mark.slow)]
NOISES = ["normal", "heavy-tailed", "seed-correlated"]
SEEDS = [3, 5, 8]
ARMS = 4


def losses(noise: str, studies: int, seeds: int, arms: int = ARMS) -> np.ndarray:
    """Losses without a true difference: float64 [studies, arms, seeds]."""
    draw, shape = np.random.default_rng([NOISES.index(noise), studies, seeds]), (studies, arms, seeds)
    if noise == "heavy-tailed":
        return draw.standard_t(3, size=shape)
    own = draw.standard_normal(shape)
    return own + 5 * draw.standard_normal((studies, 1, seeds)) if noise == "seed-correlated" else own


def most(studies: int) -> float:
    """The share of errors that 5 % come to, at most, in 99.9 % of all simulations."""
    return float(scipy_stats.binom.ppf(0.999, studies, 0.05)) / studies


def against_first(x: np.ndarray) -> np.ndarray:
    """The paired differences of the claims "the first is better than each other": [studies, arms - 1, seeds]."""
    return x[:, :1] - x[:, 1:]


def any_rejected(p: np.ndarray) -> float:
    """The share of studies in which Holm's correction over the last axis leaves any p at 5 % or less."""
    return float(((p * holm_factors(p)).min(axis=-1) <= 0.05).mean())


@pytest.mark.parametrize("studies", STUDIES)
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("noise", NOISES)
def test_better_is_wrong_at_most_one_time_in_twenty(noise: str, seeds: int, studies: int) -> None:
    p = t_test(against_first(losses(noise, studies, seeds)))
    assert any_rejected(p[:, :1]) <= most(studies)  # one claim
    assert any_rejected(p) <= most(studies)  # three, as a family


@pytest.mark.parametrize("studies", STUDIES)
@pytest.mark.parametrize("seeds", SEEDS)
def test_one_far_noisier_and_skewed_side_errs_as_the_documents_say(seeds: int, studies: int) -> None:
    """The known limit of a t-test: lognormal noise without a true difference, four times as large on one side."""
    noise = np.random.default_rng([studies, seeds]).lognormal(size=(studies, 2, seeds)) - np.exp(0.5)
    share = float((t_test(4 * noise[:, 0] - noise[:, 1]) <= 0.05).mean())
    assert 0.08 < share < 0.15


@pytest.mark.parametrize("studies", STUDIES)
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("noise", NOISES)
def test_within_is_wrong_at_most_one_time_in_twenty(noise: str, seeds: int, studies: int) -> None:
    """With a true difference at the margin both "within" and "not within" are wrong by as little as can be."""
    differences = against_first(losses(noise, studies, seeds)) + 2.0
    inside, outside = within_test(differences, 2.0)
    for p in (inside, outside):
        assert any_rejected(p[:, :1]) <= most(studies)
        assert any_rejected(p) <= most(studies)


@pytest.mark.parametrize("studies", STUDIES)
@pytest.mark.parametrize("plan", [AutoSeeds(3, 8), AutoSeeds(2, 5), AutoSeeds(3, 16)])
@pytest.mark.parametrize("noise", NOISES)
def test_seeds_added_as_needed_are_wrong_at_most_one_time_in_twenty(noise: str, plan: AutoSeeds, studies: int) -> None:
    differences = against_first(losses(noise, studies, plan.most))
    fixed = np.stack([t_test(differences[..., :count]) for count in plan.looks], axis=-1)
    corrected_p = sequential_p(plan, (fixed / weights(plan)).min(axis=-1))
    assert any_rejected(corrected_p[:, :1]) <= most(studies)
    assert any_rejected(corrected_p) <= most(studies)
    assert (fixed.min(axis=-1) <= 0.05).mean() > 0.07  # what looking without a correction would come to


@pytest.mark.parametrize("studies", STUDIES)
@pytest.mark.parametrize("noise", NOISES)
def test_within_over_looks_is_wrong_at_most_one_time_in_twenty(noise: str, studies: int) -> None:
    plan = AutoSeeds(3, 8)
    differences = against_first(losses(noise, studies, plan.most))[:, 0] + 2.0
    for side in (0, 1):
        fixed = np.stack([within_test(differences[:, :count], 2.0)[side] for count in plan.looks], axis=-1)
        p = sequential_p(plan, (fixed / weights(plan)).min(axis=-1))
        assert (p <= 0.05).mean() <= most(studies)


@pytest.mark.parametrize("studies", STUDIES)
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_probes_that_are_solved_or_not_are_wrong_at_most_one_time_in_twenty(
    share: float, seeds: int, studies: int
) -> None:
    """By the rule that verdicts go by: exact counts where any seed of the pair solved the probe, else the means."""
    draw = np.random.default_rng([seeds, studies, int(10 * share)])
    solved = draw.uniform(size=(studies, 2, seeds)) < share
    accuracy = np.where(solved, 0.995, 0.55) + 0.004 * draw.uniform(-1, 1, size=solved.shape)
    table = np.array([[barnard(a, seeds, b, seeds) for b in range(seeds + 1)] for a in range(seeds + 1)])
    counts = (accuracy >= 0.99).sum(axis=-1)
    by_counts = table[counts[:, 0], counts[:, 1]]
    by_means = t_test(accuracy[:, 0] - accuracy[:, 1])
    p = np.where(counts.any(axis=-1), by_counts, by_means)
    assert (p <= 0.05).mean() <= most(studies)
    for study in range(20):  # as the verdict has it
        first, second = (dict(enumerate(side)) for side in accuracy[study].tolist())
        assert paired_difference("a", "b", first, second, False, 0.99).p_value == pytest.approx(p[study])


ITEM_NOISES = ["normal", "heavy-tailed", "of seeds", "of items and seeds", "solved or not"]


@pytest.mark.parametrize("studies", STUDIES)
@pytest.mark.parametrize(
    ("noise", "seeds"),
    # One seed says nothing of other seeds.
    [(noise, seeds) for noise in ITEM_NOISES for seeds in (1, *SEEDS) if seeds > 1 or "seeds" not in noise],
)
def test_item_tests_are_wrong_at_most_one_time_in_twenty(noise: str, seeds: int, studies: int) -> None:
    items, draw = 40, np.random.default_rng([seeds, studies, ITEM_NOISES.index(noise)])
    shape = (studies, seeds, items)
    own, shared = draw.standard_normal(shape), draw.standard_normal((studies, 1, items))
    of_seed = draw.standard_normal((studies, seeds, 1))
    ability = draw.uniform(size=(studies, 1, items))
    right = [draw.uniform(size=shape) < ability for _side in range(2)]
    differences: dict[str, Any] = {
        "normal": 0.5 * own + shared,
        "heavy-tailed": 0.5 * draw.standard_t(3, shape) + draw.standard_t(3, (studies, 1, items)),
        "of seeds": 0.5 * own + of_seed,
        "of items and seeds": 0.5 * own + shared + of_seed,
        "solved or not": right[0].astype(float) - right[1],
    }
    x = differences[noise]
    error, mean = error_over_seeds_and_items(x), x.mean(axis=(-2, -1))
    p = 2 * scipy_stats.t.sf(np.abs(mean) / error, degrees_of_freedom(seeds, items))
    assert (p <= 0.05).mean() <= most(studies)
    assert seeds_and_items(x[0])[3] == pytest.approx(p[0])


@pytest.mark.parametrize("studies", STUDIES)
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("family", [1, 3])
def test_the_difference_that_is_printed_has_the_power_that_is_printed(seeds: int, family: int, studies: int) -> None:
    """The words beside an undecided claim, taken at their word."""
    draw = np.random.default_rng([seeds, family, studies])
    values = draw.standard_normal(seeds)
    values = (values - values.mean()) / values.std(ddof=1) * 0.7 + 0.1
    pair = paired_difference("a", "b", dict(enumerate(values.tolist())), dict.fromkeys(range(seeds), 0.0))
    words = power_words(corrected(pair, float(family), family))
    found = re.search(r"a difference of ([\d.e+-]+) with 80 % power", words)
    assert found is not None
    x = draw.normal(0.0, 0.7, size=(studies, family, seeds))
    x[:, 0] += float(found[1])  # the other claims of the family have no difference
    p = t_test(x)
    assert ((p * holm_factors(p))[:, 0] <= 0.05).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("difference", [1.0, 2.0])
@pytest.mark.parametrize("seeds", SEEDS)
def test_power_is_that_of_simulated_tests(seeds: int, difference: float) -> None:
    x = np.random.default_rng(seeds).normal(difference, 1.0, size=(10_000, seeds))
    assert (t_test(x) <= 0.05).mean() == pytest.approx(power(difference, 1.0, seeds), abs=0.03)


def test_all_looks_together_spend_five_percent() -> None:
    for plan in (AutoSeeds(3, 8), AutoSeeds(2, 4)):
        shares = spent(plan)
        assert shares == sorted(shares) and 0.045 <= shares[-1] <= 0.05
        levels = [look_level(plan, look) for look in range(len(plan.looks))]
        assert levels == sorted(levels) and levels[-1] < 0.05
        assert all(look_level(plan, look, exact=False) < levels[look] for look in range(len(levels)))


@pytest.mark.parametrize("exact", [True, False])
def test_the_claim_over_looks_is_the_p_value_of_its_smallest_look(exact: bool) -> None:
    plan, draw = AutoSeeds(3, 6), np.random.default_rng(1)
    for _ in range(20):
        values = dict(enumerate(draw.normal(1.0, 0.7, size=6).tolist(), start=1))
        pairs = [
            paired_difference("a", "b", {s: values[s] for s in plan.first(count)}, dict.fromkeys(values, 0.0))
            for count in plan.looks
        ]
        tests = [difference_test("worse than", pair) for pair in pairs]
        whole = over_looks(plan, tests, exact)
        smallest = min(pair.p_value / share for pair, share in zip(pairs, weights(plan), strict=True))
        assert whole.p_value == pytest.approx(sequential_p(plan, smallest, exact))
        outcome = whole.outcome(1.0)
        low, high = re.findall(r"[-+]?\d+\.\d+", whole.words(outcome, 1.0, ALONE))[1:3]
        assert (outcome == "undecided") == (float(low) <= 0 <= float(high))  # the interval pays for the looks as well
        assert nearness_test(50.0, pairs[-1]).outcome(1.0) == "supported"
