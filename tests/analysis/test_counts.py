"""Counts of solved seeds: exact tests against scipy's and by enumeration, and the claims that go by them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from hf_arch.analysis.claim_tests import nearness_test
from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.counts import Counts, barnard, clopper_pearson, constant_level, least_seeds, share_test
from hf_arch.analysis.power import ALONE
from hf_arch.analysis.stats import paired_difference
from tests.experiments.synthetic import write_run
from tests.report.text import comparison_text


@pytest.mark.parametrize("table", [(3, 3, 0, 3), (2, 3, 0, 4), (5, 5, 2, 5), (7, 8, 2, 8), (1, 8, 6, 8)])
def test_barnard_is_scipys(table: tuple[int, int, int, int]) -> None:
    k, n, m, o = table
    expected = scipy_stats.barnard_exact([[k, m], [n - k, o - m]], n=256).pvalue
    assert barnard(*table) == pytest.approx(expected, abs=5e-4)
    assert barnard(m, o, k, n) == pytest.approx(barnard(*table), abs=1e-9)


def test_equally_extreme_tables_count_where_rounding_tells_them_apart() -> None:
    assert barnard(4, 5, 1, 3) == pytest.approx(74 / 256)  # scipy leaves out a table of the same score: 0.255


@pytest.mark.parametrize("seeds", [(3, 3), (5, 5), (8, 8), (3, 6)])
def test_barnard_errs_at_most_one_time_in_twenty_whatever_the_share(seeds: tuple[int, int]) -> None:
    """Every table, weighed by its chance: no simulation is needed."""
    n, m = seeds
    rejected = [(k, o) for k, o in itertools.product(range(n + 1), range(m + 1)) if barnard(k, n, o, m) <= 0.05]
    assert rejected
    for share in np.linspace(0.01, 0.99, 197):
        first, second = scipy_stats.binom(n, share), scipy_stats.binom(m, share)
        assert sum(first.pmf(k) * second.pmf(o) for k, o in rejected) <= 0.05 + 1e-9


def test_nothing_or_everything_solved_shows_nothing() -> None:
    assert barnard(0, 3, 0, 5) == barnard(3, 3, 5, 5) == 1.0
    assert [least_seeds(constant_level(level)) for level in (0.05, 0.05 / 3, 1e-40)] == [3, 4, None]


@pytest.mark.parametrize(("count", "n"), [(0, 3), (3, 3), (2, 5), (8, 8)])
def test_clopper_pearson_is_that_of_the_beta_quantiles_and_dual_to_the_test(count: int, n: int) -> None:
    low, high = clopper_pearson(count, n, 0.95)
    assert low == pytest.approx(0.0 if count == 0 else scipy_stats.beta.ppf(0.025, count, n - count + 1))
    assert high == pytest.approx(1.0 if count == n else scipy_stats.beta.ppf(0.975, count + 1, n - count))
    for end, inwards in ((low, 1e-6), (high, -1e-6)):
        if 0 < end < 1:
            assert share_test(count, n, end + inwards) > 0.05 >= share_test(count, n, end - inwards)


def test_a_solved_probe_is_judged_by_counts_and_another_by_means() -> None:
    solved, unsolved = {1: 0.995, 2: 1.0, 3: 0.992}, {1: 0.52, 2: 0.55, 3: 0.53}
    pair = paired_difference("a", "b", solved, unsolved, lower_is_better=False, solved_at=0.99)
    assert pair.counts == Counts(3, 3, 0, 3, 0.99) and pair.p_value == pytest.approx(2 / 64)
    assert pair.verdict == "better" and "3 of 3 seeds [0.29, 1.00] against 0 of 3 [0.00, 0.71]" in pair.words
    assert pair.brief.startswith("better (3 of 3 seeds against 0 of 3 reach 0.99; mean +")
    assert pair.reversed().verdict == "worse"
    both = paired_difference("a", "b", solved, {1: 0.999, 2: 1.0, 3: 0.998}, False, solved_at=0.99)
    assert both.p_value == 1.0 and both.verdict == "undecided"
    mixed = {1: 0.995, 2: 0.6, 3: 0.992}
    assert paired_difference("a", "b", mixed, unsolved, False, solved_at=0.99).verdict == "undecided"
    middle = paired_difference("a", "b", {1: 0.70, 2: 0.71, 3: 0.72}, unsolved, False, solved_at=0.99)
    assert middle.counts is None and middle.verdict == "better"


def test_one_seed_decides_nothing_by_counts_either() -> None:
    assert paired_difference("a", "b", {1: 1.0}, {1: 0.5}, False, solved_at=0.99).verdict == "one seed"


@pytest.mark.parametrize(
    ("claim", "outcome"),
    [
        ("gla better than llama", "supported"),
        ("gla solves more often than llama", "supported"),
        ("gla solves less often than llama", "contradicted"),
        ("gla reaches 0.5 more often than llama", "undecided"),
        ("gla solves in at least 0.3 of its seeds", "supported"),
        ("gla solves in at least 0.9 of its seeds", "undecided"),
        ("llama reaches 0.9 in at most 0.8 of its seeds", "supported"),
        ("llama solves in at least 0.9 of its seeds", "contradicted"),
        ("gla within 0.5 of llama", "supported"),
        ("gla solves more often than rwkv6", "not judged"),
    ],
)
def test_claims_about_counts(tmp_path: Path, claim: str, outcome: str) -> None:
    for name, accuracies in (("gla", (1.0, 0.99, 0.995, 0.999)), ("llama", (0.62, 0.66, 0.70, 0.64))):
        for seed, accuracy in enumerate(accuracies):
            config = {"probe": {"task": "parity"}, "data": {}, "evaluation": {}}
            results = {"accuracy": accuracy, "final_val_loss": 1 - accuracy}
            write_run(tmp_path, name, seed, hypothesis=claim, results=results, config=config)
    comparison = compare_runs(tmp_path, metric="accuracy")
    [verdict] = comparison.verdicts
    assert verdict.statistics == outcome, verdict.evidence
    assert comparison_text(comparison, 200)


def test_nearness_on_a_solved_probe_says_what_so_few_seeds_leave_open() -> None:
    solved, too = {1: 0.995, 2: 1.0, 3: 0.992}, {1: 1.0, 2: 0.994, 3: 0.993}
    pair = paired_difference("a", "b", solved, too, lower_is_better=False, solved_at=0.99)
    test = nearness_test(0.1, pair)
    assert test.outcome(1.0) == "supported"
    assert "3 of 3 seeds [0.29, 1.00] against 3 of 3 [0.29, 1.00] reach 0.99" in test.words("supported", 1.0, ALONE)


def test_counts_of_a_loss_are_of_low_values(tmp_path: Path) -> None:
    for name, loss in (("gla", 1.5), ("llama", 1.7)):
        for seed in range(4):
            text = "gla reaches 1.6 more often than llama; gla solves more often than llama"
            write_run(tmp_path, name, seed, loss=loss + seed / 100, hypothesis=text)
    reached, solved = compare_runs(tmp_path).verdicts
    assert reached.statistics == "supported" and "4 of 4 seeds" in reached.evidence
    assert solved.statistics == "not judged"  # text is not solved or not
