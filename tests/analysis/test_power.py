"""Power of the paired test: printed numbers against simulation, and claims of equality against their error rates."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import t

from hf_arch.analysis.before import power_note
from hf_arch.analysis.claim_tests import difference_test, nearness_test, number_test, share_claim_test
from hf_arch.analysis.counts import share_test
from hf_arch.analysis.power import ALONE, power, power_words, seeds_needed, smallest_difference, within_power
from hf_arch.analysis.sequential import look_level, look_levels, over_looks
from hf_arch.analysis.stats import paired_difference, t_test, within_test
from hf_arch.recipe.seeds import AutoSeeds


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("family", [1, 3])
def test_power_is_that_of_simulated_tests(seeds: int, family: int) -> None:
    difference = smallest_difference(0.7, seeds, family)
    x = np.random.default_rng(seeds).normal(difference, 0.7, size=(10_000, seeds))
    found = np.abs(x.mean(1) / (x.std(1, ddof=1) / seeds**0.5)) > t.ppf(1 - 0.025 / family, seeds - 1)
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_seeds_needed_are_the_fewest() -> None:
    needed = seeds_needed(0.5, 1.0)
    assert needed is not None
    assert power(0.5, 1.0, needed) >= 0.8 > power(0.5, 1.0, needed - 1)
    assert seeds_needed(1e-4, 1.0) is None
    with pytest.raises(ValueError, match="seeds >= 2"):
        power(1.0, 1.0, 1)


def test_within_is_wrong_at_most_one_time_in_twenty_at_the_bound() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        values = dict(enumerate(rng.normal(1.0, 0.3, size=5)))
        pair = paired_difference("a", "b", values, dict.fromkeys(values, 0.0))
        wrong += nearness_test(1.0, pair).outcome(1.0) == "supported"
    assert 0.03 <= wrong / 1000 <= 0.07  # 5 % with the error of 1000 draws


def test_no_difference_seen_is_not_equality_shown() -> None:
    pair = paired_difference("a", "b", {0: 1.0, 1: 1.2, 2: 1.1}, {0: 1.1, 1: 1.1, 2: 1.1})
    test = difference_test("not distinguishable from", pair)
    assert test.outcome(1.0) == "undecided"
    assert "with 80 % power" in power_words(pair) and "with 80 % power" in test.words("undecided", 1.0, ALONE)


@pytest.mark.parametrize("difference", [0.0, 0.3])
@pytest.mark.parametrize("seeds", [3, 8])
def test_the_power_of_within_is_that_of_simulated_tests(seeds: int, difference: float) -> None:
    x = np.random.default_rng(seeds).normal(difference, 0.5, size=(10_000, seeds))
    for bound in (0.7, 1.5):
        shown = (within_test(x, bound)[0] <= 0.05 / 2).mean()
        assert shown == pytest.approx(within_power(bound, difference, 0.5, seeds, family=2), abs=0.02)


VALUES = [1.50, 1.53, 1.56, 1.49]


@pytest.mark.parametrize(("bound", "said"), [(0.05, "that one of 0.02 is within 0.05 needs"), (0.01, "outside 0.01")])
def test_what_seeds_can_show_stands_beside_a_within_that_is_undecided(bound: float, said: str) -> None:
    pair = paired_difference("a", "b", dict(enumerate(VALUES)), dict.fromkeys(range(4), 1.5))
    for test in (nearness_test(bound, pair), number_test("within", bound, 1.5, "a", "loss", VALUES)):
        assert test.outcome(1.0) == "undecided"
        words = test.words("undecided", 1.0, ALONE)
        assert said in words and "needs" in words and words.endswith("seeds")
        found = re.search(r"4 seeds show a \w+ of 0 to be within ([\d.]+) with 80 % power", words)
        assert found is not None
        assert within_power(float(found[1]), 0.0, float(np.std(VALUES, ddof=1)), 4) == pytest.approx(0.8, abs=0.01)


def test_what_seeds_can_show_stands_beside_a_number_and_a_share_that_are_undecided() -> None:
    test = number_test("at most", None, 1.53, "a", "loss", VALUES)
    words = test.words("undecided", 1.0, ALONE)
    least = smallest_difference(float(np.std(VALUES, ddof=1)), 4)
    assert test.outcome(1.0) == "undecided"
    assert f"4 seeds show a distance of {least:.3g} from 1.53 with 80 % power" in words and "one of 0.01 needs" in words
    for relation, share, seen in (("solves in at least", 0.8, 1), ("solves in at most", 0.2, 0)):
        assert share_test(17 * seen, 17, share) <= 0.05 < share_test(16 * seen, 16, share)
        words = share_claim_test(relation, share, "a", 0.99, 3 * seen, 3).words("undecided", 1.0, ALONE)
        assert "It takes 17 seeds to show it" in words


def test_where_nothing_varies_or_one_seed_is_there_no_power_is_made_up() -> None:
    for values in ([1.5], [1.5, 1.5]):
        assert "power" not in number_test("at most", None, 1.53, "a", "loss", values).words("undecided", 1.0, ALONE)


@pytest.mark.parametrize("look", [0, 2])
def test_the_difference_that_looks_can_show_is_found_that_often_by_them(look: int) -> None:
    """Each look has a small part of the 5 %: with the level of a fixed test it would find less than it says."""
    plan, std = AutoSeeds(3, 6), 0.7
    level = look_levels(plan, ALONE)
    seeds = plan.looks[look]
    values = np.random.default_rng(look).standard_normal(seeds)
    values = (values - values.mean()) / values.std(ddof=1) * std + 0.1
    pairs = [
        paired_difference("a", "b", dict(enumerate(values[:count].tolist())), dict.fromkeys(range(count), 0.0))
        for count in plan.looks[: look + 1]
    ]
    test = over_looks(plan, [difference_test("worse than", pair) for pair in pairs], exact=True)
    found = re.search(
        rf"{seeds} seeds show a difference of ([\d.]+) with 80 % power", test.words("undecided", 1.0, ALONE)
    )
    assert found is not None
    x = np.random.default_rng(7).normal(float(found[1]), std, size=(10_000, seeds))
    assert (t_test(x) <= level(seeds)).mean() == pytest.approx(0.8, abs=0.03)


def test_a_dry_run_of_seeds_as_needed_says_what_the_last_look_can_show() -> None:
    plan = AutoSeeds(3, 6)
    least = smallest_difference(1.0, 6, 0.05 / look_level(plan, 3))
    said = power_note("a better than b", plan)
    assert f"6 seeds, looked at from 3 on, and 1 claim find a difference of {least:.2g} times its spread" in said
    assert least > smallest_difference(1.0, 6)
