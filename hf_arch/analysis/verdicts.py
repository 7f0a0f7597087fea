"""Verdicts: what the numbers say about the claims that were made.

A hypothesis is free text. Where it holds claims (`hf_arch.runs.claims`), each is judged by its own test
(`hf_arch.analysis.claim_tests`). The claims of a comparison, those that were removed later included, are one family:
Holm's correction runs over their tests, and not over pairs that nobody made a claim about. 'not distinguishable' has no
margin, so that finding nothing leaves it undecided; next to an undecided claim stands what the seeds could have shown.
One seed has no interval, and decides nothing. Where the audit of the runs that a claim is about finds another reason
for a difference, a claim that the numbers would decide is `confounded`, with the reasons. Text without such a claim
gets no verdict from a program: the reader judges it, with the result next to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hf_arch.analysis.claim_tests import (
    ClaimTest,
    Outcome,
    difference_test,
    nearness_test,
    number_test,
    often_test,
    share_claim_test,
)
from hf_arch.analysis.counts import Counts, constant_level
from hf_arch.analysis.finding import Finding
from hf_arch.analysis.headline import headline
from hf_arch.analysis.measured import Measured
from hf_arch.analysis.run_names import listed
from hf_arch.analysis.sequential import over_looks
from hf_arch.analysis.stats import ALPHA, PairedDifference, holm_factors, paired_difference
from hf_arch.runs.claims import CLAIM, number_in
from hf_arch.runs.record import definitions
from hf_arch.runs.registration import UNREGISTERED, MadeClaim, Registration

LOSS = "final_val_loss"
DECIDED: tuple[Outcome, ...] = ("supported", "contradicted")
OF_TWO_RUNS = ("learning rate", "schedule", "still learning")
"""Checks whose violations leave a claim about one run and a number alone; the others say that its seeds are not runs of
one thing, or not independent, or not all there."""


@dataclass(frozen=True)
class Verdict:
    """One claim of a hypothesis (or the whole text, where it holds none) with the outcome and the evidence in words.

    confounds: names of the audit's checks that give another reason for what the runs of the claim show. A claim that
    the statistics would decide is `confounded` where there is one. reasons: their sentences.
    statistics: the outcome without the audit. p_value, p_adjusted: before and after Holm's correction over the `family`
    of claims. registration: whether the claim was made before there were results, and whether it was removed since.
    """

    hypothesis: str
    claim: str
    outcome: Outcome
    evidence: str
    confounds: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    statistics: Outcome = "not judged"
    p_value: float | None = None
    p_adjusted: float | None = None
    family: int = 0
    registration: Registration = UNREGISTERED

    def __str__(self) -> str:
        return f"{self.claim}: {self.outcome} ({self.evidence})"

    @property
    def mark(self) -> str:
        """What a reader has to know of when the claim was made: `added later`, `removed later`, `more seeds later`."""
        when = self.registration
        marks = {
            "added later": when.status == "added later",
            "removed later": when.removed is not None,
            "more seeds later": when.more_seeds is not None,
        }
        return ", ".join(mark for mark, holds in marks.items() if holds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def judge(claims: Sequence[MadeClaim], measured: Measured) -> list[Verdict]:
    """One verdict on each claim that was made, after Holm's correction over all of them."""
    tests = [_test(made.claim, measured) for made in claims]
    by_key = {test.key: 1.0 if test.p_value is None else test.p_value for _names, test in filter(None, tests)}
    factors = dict(zip(by_key, holm_factors(list(by_key.values())).tolist(), strict=True))
    verdicts = []
    for made, found in zip(claims, tests, strict=True):
        if found is None:
            verdict = Verdict(made.hypothesis, made.claim, "not judged", _unjudged_words(made.claim, measured))
        else:
            names, test = found
            verdict = _verdict(made, test, factors[test.key], len(by_key), names, measured)
        verdicts.append(replace(verdict, registration=made.registration))
    return verdicts


Found = tuple[tuple[str, ...], ClaimTest]
"""The names of the groups that a claim is about, and its test."""


def _test(claim: str, measured: Measured) -> Found | None:
    """The test of a claim, over all looks where seeds were added as they were needed; None where it is about nothing
    that is here."""
    match = CLAIM.fullmatch(claim)
    plan = measured.seed_plan
    found = None if match is None else _test_of(match, _View(measured))
    if match is None or plan is None or found is None:
        return found
    names, test = found
    groups = [measured.group(name).by_seed(measured.metric) for name in names]
    reached = min(max((seed for seed in group if seed <= plan.most), default=0) for group in groups)
    views = [_View(measured, count) for count in plan.looks if count <= reached]
    looks = [look[1] for view in views if (look := _test_of(match, view)) is not None]
    if not looks or len(looks) < len(views):  # the first look is still to come
        said = f"{' against '.join(names)}: the first look is after {plan.least} seeds, which are not there yet"
        return names, replace(test, p_value=None, otherwise="undecided", words=lambda *_: said)
    complete = all(set(plan.first(reached)) <= group.keys() for group in groups)
    return names, over_looks(plan, looks, complete and not any(look.by_counts for look in looks))


@dataclass(frozen=True)
class _View:
    """What was measured, or what it was when seeds 1 to `count` were there."""

    measured: Measured
    count: int | None = None

    def values(self, name: str) -> dict[int, float]:
        """{seed: value} of a group."""
        found = self.measured.group(name).by_seed(self.measured.metric)
        return found if self.count is None else {seed: x for seed, x in found.items() if 1 <= seed <= self.count}

    def pair(self, first: str, second: str) -> PairedDifference:
        """The difference of two groups."""
        whole = self.measured
        return paired_difference(
            first, second, self.values(first), self.values(second), whole.lower_is_better, whole.solved_at
        )


def _test_of(match: re.Match[str], view: _View) -> Found | None:
    measured, relation = view.measured, match["relation"]
    bound = None if match["bound"] is None else float(match["bound"])
    first, second = (_group_name(match[side], measured) for side in ("first", "second"))
    number = number_in(match["second"]) if second is None else None
    if first is None:
        return None
    if relation.startswith(("solves", "reaches")):
        return _counted(match, first, second, number, view)
    if number is not None and relation.startswith(("at ", "within ")):
        values = list(view.values(first).values())
        return (first,), number_test(relation, bound, number, first, measured.metric_name, values)
    if second is None or first == second or relation.startswith("at "):
        return None
    pair = view.pair(first, second)
    test = difference_test(relation, pair) if bound is None else nearness_test(bound, pair)
    return (first, second), test


def _counted(match: re.Match[str], first: str, second: str | None, number: float | None, view: _View) -> Found | None:
    """The test of a claim about how many seeds reached a number; None where there is no such number or side."""
    measured = view.measured
    written = match["reached"] or match["level"]
    threshold = measured.solved_at if written is None else float(written)
    if threshold is None:
        return None
    better = (lambda value: value <= threshold) if measured.lower_is_better else (lambda value: value >= threshold)

    def reached(name: str) -> tuple[int, int]:
        values = view.values(name).values()
        return sum(map(better, values)), len(values)

    if number is not None and " in at " in match["relation"] and reached(first)[1] and 0 <= number <= 1:
        return (first,), share_claim_test(match["relation"], number, first, threshold, *reached(first))
    if second is None or first == second or "often" not in match["relation"]:
        return None
    if not reached(first)[1] or not reached(second)[1]:
        return None
    counts = Counts(*reached(first), *reached(second), threshold)
    return (first, second), often_test(match["relation"], view.pair(first, second), counts)


def _unjudged_words(claim: str, measured: Measured) -> str:
    match = CLAIM.fullmatch(claim)
    why = "It is not of the form 'A better than B'" if match is None else _why_unjudged(match, measured)
    return f"{why}. {headline(measured)}"


def _why_unjudged(match: re.Match[str], measured: Measured) -> str:
    """What a claim lacks that has the form of one."""
    first, second = (_group_name(match[side], measured) for side in ("first", "second"))
    relation, number = match["relation"], number_in(match["second"])
    sides = {match["first"]: first} | ({} if second is None and number is not None else {match["second"]: second})
    having, place = {group.name: group.name for group in measured.groups if group.by_seed(measured.metric)}, ""
    if measured.ladder is not None:
        having = measured.ladder.top
        place = " at the largest size and budget, where a ladder's claims are judged"
    missing = [text for text, name in sides.items() if name is None or name not in having]
    if missing:
        there = f"there are results of {', '.join(having.values())}" if having else "no run has one"
        return f"{listed(missing)} {'has' if len(missing) == 1 else 'have'} no result here{place}; {there}"
    if first == second:
        return "It compares a run with itself"
    if relation.startswith("solves") and measured.solved_at is None:
        return "Seeds solve a probe, and these are no accuracies of one; 'reaches X' names the number that counts"
    if " in at " in relation:
        return f"{match['second']} is not a share of seeds, from 0 to 1"
    return f"{relation!r} needs {'a number' if number is None else 'a run'} after it, not {match['second']}"


def _verdict(
    made: MadeClaim, test: ClaimTest, factor: float, family: int, names: tuple[str, ...], measured: Measured
) -> Verdict:
    """The verdict on a claim about the groups of these names, after an audit of their runs alone."""
    found = [*measured.confounds(*names), *_other_metric(made, measured), *_missing_seeds(made, names, measured)]
    found = [finding for finding in found if not _leaves_near(finding, test, measured)]
    if len(names) == 1:  # against a number: only what spoils the number itself
        found = [finding for finding in found if finding.check not in OF_TWO_RUNS]
    statistics = test.outcome(factor)
    p = None if test.p_value is None else min(1.0, test.p_value * factor)
    evidence = test.words(statistics, factor, constant_level(ALPHA / family))
    if p is not None and family > 1:
        evidence += f" (p = {p:.2g} after Holm over {family} claims)"
    outcome = statistics
    if statistics in DECIDED and found:
        outcome = "confounded"
        evidence = f"{evidence}; but: {'; '.join(finding.sentence.rstrip('.') for finding in found)}"
    return Verdict(
        made.hypothesis,
        made.claim,
        outcome,
        evidence,
        confounds=tuple(dict.fromkeys(finding.check for finding in found)),
        reasons=tuple(finding.sentence for finding in found),
        statistics=statistics,
        p_value=test.p_value,
        p_adjusted=p,
        family=family,
    )


def _leaves_near(finding: Finding, test: ClaimTest, measured: Measured) -> bool:
    """Whether what losses still fall by in a tenth of the budget leaves a difference within the bound of the claim."""
    if finding.check != "still learning" or test.margin is None or measured.metric != LOSS:
        return False
    return max(side["fall"] for side in finding.values.values()) <= test.margin


def _other_metric(made: MadeClaim, measured: Measured) -> list[Finding]:
    """A finding where a claim is judged by another number than it was made of."""
    claimed = made.registration.metric or measured.claimed_metric
    if not claimed or claimed == measured.metric:
        return []
    known = definitions(measured.runs)
    words = known[claimed].words if claimed in known else claimed
    sentence = f"The claim was made of the {words}, and is judged by the {measured.metric_name}."
    return [Finding("metric", "violation", sentence, ())]


def _missing_seeds(made: MadeClaim, names: Sequence[str], measured: Measured) -> list[Finding]:
    """A finding where a seed that was to be looked at has no result on any side: what is judged was then chosen, or the
    set has not ended."""
    there = {seed for name in names for seed in measured.group(name).by_seed(measured.metric)}
    registered = made.registration.status != "not registered"
    planned = made.registration.seeds if registered else _planned_seeds(names, measured)
    missing = [str(seed) for seed in planned if seed not in there]
    if not missing or not there:
        return []
    have = "has" if len(missing) == 1 else "have"
    sentence = (
        f"Of the seeds that {'were registered with the claim' if registered else 'the runs say their set has'}, "
        f"{', '.join(missing)} {have} no result on either side: those that are here may have been chosen."
    )
    return [Finding("dropped runs", "violation", sentence, ())]


def _planned_seeds(names: Sequence[str], measured: Measured) -> list[int]:
    """The seeds of the set as its runs record them, each for itself: wherever their folders were copied to."""
    runs = [run for name in names for run in measured.group(name).runs]
    return sorted({int(seed) for run in runs for seed in run.experiment.get("planned_seeds") or ()})


def _group_name(text: str, measured: Measured) -> str | None:
    if any(group.name == text for group in measured.groups):
        return text
    if measured.ladder is not None and (named := measured.ladder.named(text)) is not None:
        return named
    having = [group.name for group in measured.groups if group.reference.architecture == text]
    return having[0] if len(having) == 1 else None
