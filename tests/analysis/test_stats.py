"""Statistics against SciPy on known cases, and over many simulated suites: coverage, and no false differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from hf_arch.analysis.stats import (
    Interval,
    all_pairs,
    bootstrap_interval,
    holm,
    holm_factors,
    paired_difference,
    t_interval,
    t_test,
    within_test,
)

VALUES = [1.62, 1.58, 1.65, 1.60, 1.61]


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def test_t_interval_is_scipys() -> None:
    interval = t_interval(VALUES)
    expected = scipy_stats.ttest_1samp(VALUES, 0.0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert interval.mean == pytest.approx(np.mean(VALUES))


def test_bootstrap_interval_is_close_to_scipys() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=40).tolist()
    interval = bootstrap_interval(values, samples=20_000)
    expected = scipy_stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    ours, theirs = (interval.low, interval.high), expected.confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02 * np.std(values))


def test_one_value_has_no_interval() -> None:
    assert t_interval([1.5]) == Interval(1.5, None, None, 1, None)
    assert bootstrap_interval([1.5]).low is None
    with pytest.raises(ValueError, match="at least one value"):
        t_interval([])


def test_paired_test_is_scipys() -> None:
    first, second = VALUES, [1.60, 1.57, 1.66, 1.55, 1.58]
    pair = paired_difference("a", "b", by_seed(first), by_seed(second))
    assert pair.p_value == pytest.approx(scipy_stats.ttest_rel(first, second).pvalue, rel=1e-12)


def test_only_shared_seeds_are_paired() -> None:
    pair = paired_difference("a", "b", {1: 1.0, 2: 2.0, 3: 9.0}, {2: 1.5, 1: 0.7, 4: 0.0})
    assert pair.seeds == (1, 2)
    assert pair.difference is not None and pair.difference.mean == pytest.approx(0.4)
    assert paired_difference("a", "b", {1: 1.0}, {2: 1.0}).verdict == "no shared seed"


def test_words_of_one_and_of_two_seeds() -> None:
    one = paired_difference("a", "b", {1: 1.50}, {1: 1.52})
    assert one.verdict == "one seed"
    assert one.words == "0.02 lower (one seed: no interval)"
    two = paired_difference("a", "b", {1: 1.50, 2: 1.60}, {1: 1.53, 2: 1.62})
    assert two.difference is not None and two.difference.low is not None
    assert two.verdict == "undecided"  # one degree of freedom: 12.7 standard errors


def test_words_say_who_is_better_whichever_way_round() -> None:
    first, second = by_seed([1.500, 1.521, 1.540, 1.511]), by_seed([1.600, 1.620, 1.642, 1.613])
    pair = paired_difference("a", "b", first, second)
    assert pair.words.startswith("better by 0.101") or pair.words.startswith("better by 0.1008")
    assert pair.reversed().words == pair.words.replace("better", "worse")
    assert paired_difference("a", "b", first, second, lower_is_better=False).verdict == "worse"


def test_equal_differences_on_every_seed_count_as_one_seed() -> None:
    constant = paired_difference("a", "b", by_seed([1.0, 1.25, 1.5]), by_seed([1.5, 1.75, 2.0]))
    assert constant.p_value is None and constant.verdict == "one seed"
    same = paired_difference("a", "a", by_seed(VALUES), by_seed(VALUES))
    assert same.verdict == "same" and same.words == "the same on every seed"


def test_holm_on_a_known_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_correction_covers_all_pairs() -> None:
    rng = np.random.default_rng(1)
    groups = {name: by_seed((1.5 + 0.01 * rng.standard_normal(5)).tolist()) for name in "abcd"}
    pairs = all_pairs(groups)
    assert len(pairs) == 6
    assert [pair.p_adjusted for pair in pairs] == pytest.approx(holm([pair.p_value or 0.0 for pair in pairs]))
    assert {pair.family for pair in pairs} == {6}


def test_an_architecture_against_itself_is_rarely_called_different() -> None:
    """A/A check: 400 suites of four equal architectures and three seeds; a suite errs with its first false difference.

    The true rate of this set-up is 4.9 % (of 200,000 suites); 400 suites with a true 5 % show 31 errors or fewer in
    99 % of all cases, which is the slack allowed here.
    """
    rng = np.random.default_rng(2024)
    suites = 400
    errors = 0
    for _ in range(suites):
        of_seed = 0.03 * rng.standard_normal(3)
        groups = {name: by_seed((1.5 + of_seed + 0.01 * rng.standard_normal(3)).tolist()) for name in "abcd"}
        errors += any(pair.verdict in ("better", "worse") for pair in all_pairs(groups))
    assert errors <= scipy_stats.binom.ppf(0.99, suites, 0.05)


def test_a_true_difference_is_found() -> None:
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(50):
        of_seed = 0.03 * rng.standard_normal(5)
        good, bad = (level + of_seed + 0.005 * rng.standard_normal(5) for level in (1.50, 1.55))
        found += paired_difference("a", "b", by_seed(good.tolist()), by_seed(bad.tolist())).verdict == "better"
    assert found >= 48


@pytest.mark.parametrize("n", [2, 3, 8])
def test_t_intervals_cover_the_mean_as_often_as_they_say(n: int) -> None:
    trials = 2000
    samples = np.random.default_rng(n).normal(1.5, 0.02, size=(trials, n))
    intervals = [t_interval(sample.tolist()) for sample in samples]
    covered = sum(i.low <= 1.5 <= i.high for i in intervals if i.low is not None and i.high is not None)
    low, high = scipy_stats.binom.ppf([0.005, 0.995], trials, 0.95)
    assert low <= covered <= high


def test_bootstrap_intervals_cover_the_mean_of_thirty_values() -> None:
    samples = np.random.default_rng(9).normal(1.5, 0.02, size=(400, 30))
    intervals = [bootstrap_interval(sample.tolist(), samples=500) for sample in samples]
    covered = sum(i.low <= 1.5 <= i.high for i in intervals if i.low is not None and i.high is not None)
    assert covered >= scipy_stats.binom.ppf(
        0.005, 400, 0.92
    )  # the percentile bootstrap is known to fall a little short


def test_interval_and_verdict_are_of_one_family() -> None:
    first, gaps = by_seed([1.50, 1.52, 1.54]), (0.030, 0.030, 0.050)
    second = {seed: value + gap for (seed, value), gap in zip(first.items(), gaps, strict=True)}
    third = {seed: value + gap for (seed, value), gap in zip(first.items(), (0.02, -0.03, 0.01), strict=True)}
    assert paired_difference("a", "b", first, second).words == "better by 0.037 [0.008, 0.065]"
    pair = next(pair for pair in all_pairs({"a": first, "b": second, "c": third}) if pair.second == "b")
    assert pair.words == "undecided (-0.037 [-0.088, +0.014])"
    assert pair.difference is not None and pair.difference.high < 0  # of this pair alone


def test_a_difference_is_never_minus_nothing_however_wide_its_interval() -> None:
    pair = paired_difference("a", "b", by_seed([1.0, 1.0]), by_seed([10.3, -7.6]))
    assert pair.words == "undecided (-0.4 [-114, +113])"


def test_intervals_leave_out_zero_where_the_corrected_test_rejects() -> None:
    draw = np.random.default_rng(7)
    for _ in range(40):
        groups = {name: by_seed((draw.normal(0, 0.7) + draw.normal(size=4)).tolist()) for name in "abcd"}
        for pair in all_pairs(groups):
            assert pair.interval is not None and pair.interval.low is not None and pair.p_adjusted is not None
            assert (pair.p_adjusted <= 0.05) == (pair.interval.low * pair.interval.high > 0)


def test_holm_factors_are_those_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(3).uniform(size=(20, 6)) ** 3
    p[0, :3] = 0.0
    expected = np.stack([multitest.multipletests(row, method="holm")[1] for row in p])
    np.testing.assert_allclose(np.minimum(1, p * holm_factors(p)), expected, rtol=1e-12)
    assert (holm_factors(p) >= 1).all() and (holm_factors(p) <= 6).all()


def test_tests_are_scipys_along_the_last_axis() -> None:
    x = np.random.default_rng(4).normal(0.2, 1.0, size=(5, 7))
    np.testing.assert_allclose(t_test(x, 0.3), scipy_stats.ttest_1samp(x, 0.3, axis=1).pvalue, rtol=1e-10)
    inside, outside = within_test(x, 0.5, 0.1)
    above = scipy_stats.ttest_1samp(x, -0.4, axis=1, alternative="greater").pvalue
    below = scipy_stats.ttest_1samp(x, 0.6, axis=1, alternative="less").pvalue
    np.testing.assert_allclose(inside, np.maximum(above, below), rtol=1e-10)
    far = np.minimum(2 * np.minimum(1 - above, 1 - below), 1.0)
    np.testing.assert_allclose(outside, far, rtol=1e-10)
