"""Power of the paired test: printed numbers against simulation, and claims of equality against their error rates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from hf_arch.analysis.claim_tests import difference_test, nearness_test
from hf_arch.analysis.power import power, power_words, seeds_needed, smallest_difference
from hf_arch.analysis.stats import paired_difference


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
    assert "with 80 % power" in power_words(pair) and "with 80 % power" in test.words("undecided", 1.0, 1)
