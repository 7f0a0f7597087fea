"""The test of one claim: its p value before any correction, what is concluded where it rejects, and the words.

    A better|worse than B      paired t-test; A not distinguishable from B: the same test, which can only contradict it
    A within d of B            two one-sided t-tests on the paired differences; outside d: a two-sided one
    A at least|at most x       t-test of A's mean against x
    A within d of x            as within d of B, on A's values
    A solves|reaches x more|less often than B     Barnard's exact test on the counts of seeds
    A solves|reaches x in at least|at most y      exact binomial test of a share, as the interval of Clopper and Pearson

On the accuracy of a probe that some seed of either side solved, better and worse go by Barnard's test as well. The
tests are two-sided at 5 %, so that each side is at 2.5 %; "within" is at 5 % a side.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from hf_arch.analysis.columns import interval_text
from hf_arch.analysis.counts import Counts, Level, clopper_pearson, least_for_share, least_seeds, share_test
from hf_arch.analysis.power import distance_power_words, power_words, within_power_words
from hf_arch.analysis.stats import (
    ALPHA,
    PairedDifference,
    corrected,
    have_spread,
    paired_on_means,
    t_interval,
    t_test,
    within_test,
)

Outcome = Literal["supported", "contradicted", "undecided", "confounded", "not judged"]
Words = Callable[[Outcome, float, Level], str]
"""The evidence, from the outcome, the factor of Holm's correction and the level of its strictest step, by seeds."""


@dataclass(frozen=True)
class ClaimTest:
    """p_value: None where there is nothing to test, as with one seed. conclusion: the outcome where the corrected test
    rejects; otherwise: where it does not. key: equal for claims that one test decides.
    by_counts: whether it is an exact test of counts. margin: of `within`, how far the difference is from its bound."""

    key: Hashable
    p_value: float | None
    conclusion: Outcome
    words: Words
    otherwise: Outcome = "undecided"
    by_counts: bool = False
    margin: float | None = None

    def outcome(self, factor: float) -> Outcome:
        """The outcome after a correction that multiplies p by `factor`."""
        rejects = self.p_value is not None and self.p_value * factor <= ALPHA
        return self.conclusion if rejects else self.otherwise


def difference_test(relation: str, pair: PairedDifference) -> ClaimTest:
    """`A better than B`, `A worse than B` or `A not distinguishable from B`, of the pair A - B."""
    better = pair.difference is not None and (pair.difference.mean < 0) == pair.lower_is_better
    if pair.counts is not None:
        better = pair.counts.gap > 0
    equality = relation == "not distinguishable from"
    conclusion: Outcome = "supported" if relation.startswith("better" if better else "worse") else "contradicted"
    otherwise: Outcome = "supported" if equality and pair.verdict == "same" else "undecided"

    def words(outcome: Outcome, factor: float, level: Level) -> str:
        strength = power_words(pair, level) if outcome == "undecided" else ""
        return _with_power(_words_of(pair, factor), strength)

    key = ("difference", frozenset((pair.first, pair.second)))
    return ClaimTest(key, pair.p_value, conclusion, words, otherwise, pair.counts is not None)


def nearness_test(bound: float, pair: PairedDifference) -> ClaimTest:
    """`A within bound of B`, of the pair A - B."""
    same = len(pair.values) > 1 and not any(pair.values)
    p: float | None
    conclusion: Outcome = "supported"
    if same or len(pair.values) < 2 or not have_spread(pair.values):  # equal on every seed, or nothing to judge by
        p = 0.0 if same else None
    else:
        p, conclusion = _nearness(pair.values, bound)

    def words(outcome: Outcome, factor: float, level: Level) -> str:
        shares = "" if pair.counts is None else f"; {pair.counts.words(1 - ALPHA / factor)}"
        if outcome != "supported" or same:
            plain = pair if pair.counts is None else paired_on_means(pair)
            said = _words_of(plain, factor) + shares
            if outcome != "undecided":
                return said
            return _with_power(said, within_power_words(pair.values, bound, 0.0, level, "a difference"))
        interval = t_interval(pair.values, 1 - 2 * ALPHA / factor)
        assert interval.low is not None and interval.high is not None
        return (
            f"{pair.first} against {pair.second}: {interval.mean:+.4f} "
            f"[{interval.low:+.4f}, {interval.high:+.4f}] by two one-sided tests{_yet(pair, factor)}{shares}"
        )

    key = ("within", bound, frozenset((pair.first, pair.second)))
    margin = None if pair.difference is None else bound - abs(pair.difference.mean)
    return ClaimTest(key, p, conclusion, words, margin=margin)


def _words_of(pair: PairedDifference, factor: float) -> str:
    return f"{pair.first} against {pair.second}: {corrected(pair, factor, pair.family).words}"


def _with_power(words: str, strength: str) -> str:
    return f"{words}. {strength}" if strength else words


def _yet(pair: PairedDifference, factor: float) -> str:
    """That two sides which are near each other differ all the same; empty where they were not found to."""
    judged = corrected(paired_on_means(pair), factor, pair.family)
    return f", and yet {judged.words}" if judged.verdict in ("better", "worse") else ""


def number_test(
    relation: str, bound: float | None, number: float, name: str, metric: str, values: Sequence[float]
) -> ClaimTest:
    """`A at least x`, `A at most x` or `A within bound of x`, of A's `values` over seeds."""
    low = number - (bound or 0.0) if relation != "at most" else float("-inf")
    high = number + (bound or 0.0) if relation != "at least" else float("inf")
    mean = sum(values) / len(values) if values else 0.0
    inside: Outcome = "supported" if low <= mean <= high else "contradicted"
    if len(values) < 2:
        p, conclusion = None, inside
    elif max(values) == min(values):
        p, conclusion = 0.0, inside
    elif bound is not None:
        p, conclusion = _nearness(values, bound, number)
    else:
        p, conclusion = float(t_test(values, number)), inside

    def words(outcome: Outcome, factor: float, level: Level) -> str:
        shown = 1 - ALPHA / factor * (2 if bound is not None and outcome == "supported" else 1)
        said = f"{name}: {metric} {interval_text(t_interval(values, shown) if values else None)}"
        if outcome != "undecided":
            return said
        if bound is not None:
            return _with_power(said, within_power_words(values, bound, number, level, "a distance"))
        return _with_power(said, distance_power_words(values, number, level, f"a distance of {{:.3g}} from {number:g}"))

    return ClaimTest(("number", name, relation, bound, number), p, conclusion, words)


def often_test(relation: str, pair: PairedDifference, counts: Counts) -> ClaimTest:
    """`A solves more|less often than B`, or the same of another number that is reached."""
    conclusion: Outcome = "supported" if ("more" in relation) == (counts.gap > 0) else "contradicted"

    def words(outcome: Outcome, factor: float, level: Level) -> str:
        least = least_seeds(level) if outcome == "undecided" else None
        strength = "" if least is None else f"All against none is found with {least} seeds a side"
        return _with_power(f"{pair.first} against {pair.second}: {counts.words(1 - ALPHA / factor)}", strength)

    p = counts.p_value if min(counts.first_n, counts.second_n) > 1 else None
    key = ("often", counts.threshold, frozenset((pair.first, pair.second)))
    return ClaimTest(key, p, conclusion, words, by_counts=True)


def share_claim_test(relation: str, share: float, name: str, threshold: float, count: int, n: int) -> ClaimTest:
    """`A solves in at least|at most share` of its seeds: `count` of `n` did."""
    inside = count >= share * n if "at least" in relation else count <= share * n
    p = share_test(count, n, share) if n > 1 else None

    def words(outcome: Outcome, factor: float, level: Level) -> str:
        low, high = clopper_pearson(count, n, 1 - ALPHA / factor)
        said = f"{name}: {count} of {n} seeds [{low:.2f}, {high:.2f}] reach {threshold:g}"
        least = least_for_share(share, "at least" in relation, level) if outcome == "undecided" else None
        which = "all" if "at least" in relation else "none"
        strength = "" if least is None else f"It takes {least} seeds to show it, where {which} of them reach it"
        return _with_power(said, strength)

    conclusion: Outcome = "supported" if inside else "contradicted"
    return ClaimTest(("share", relation, share, name, threshold), p, conclusion, words, by_counts=True)


def _nearness(values: Sequence[float], bound: float, centre: float = 0.0) -> tuple[float, Outcome]:
    inside, outside = (float(p) for p in within_test(values, bound, centre))
    return (inside, "supported") if inside <= outside else (outside, "contradicted")
