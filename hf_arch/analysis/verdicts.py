"""Verdicts: what the numbers say about a hypothesis.

A hypothesis is free text. Where it holds claims of the form

    A better than B        A worse than B        A not distinguishable from B        A within 0.1 of B
    A at least 0.99        A at most 1.9         A within 0.05 of 1.88

(`hf_arch.runs.claims`), each claim is judged by the paired difference of
the table, or against a number by the mean of A, whose 95 % interval has to lie inside the bounds. `within X of B` is
two one-sided tests at 5 % (the 90 % interval). 'not distinguishable' has no margin, so that finding nothing leaves
it undecided; beside an undecided claim stands what the seeds could have shown. One seed has no interval,
and decides nothing. Where the audit of the runs that a claim is about finds another reason for a difference,
a claim that the numbers would decide is `confounded`, with the reasons. Text without such a claim gets no verdict from
a program: the reader judges it, with the result beside it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hf_arch.analysis.columns import interval_text
from hf_arch.analysis.power import power_words
from hf_arch.analysis.stats import LEVEL, Interval, PairedDifference, t_interval
from hf_arch.core.errors import choice_error
from hf_arch.runs.claims import CLAIM
from hf_arch.runs.registration import UNREGISTERED, MadeClaim, Registration

if TYPE_CHECKING:
    from hf_arch.analysis.comparison import Comparison

Outcome = Literal["supported", "contradicted", "undecided", "confounded", "not judged"]
DECIDED: tuple[Outcome, ...] = ("supported", "contradicted")
OF_ONE_RUN = ("seeds", "rows", "data", "tokenizer", "code", "versions")
"""Checks that touch a claim about one run and a number: that the seeds are runs of one thing, and independent."""


@dataclass(frozen=True)
class Verdict:
    """One claim of a hypothesis (or the whole text, where it holds none) with the outcome and the evidence in words.

    confounds: names of the audit's checks that give another reason for what the runs of the claim show. A claim that
    the statistics would decide is `confounded` where there is one. reasons: their sentences.
    registration: whether the claim was made before there were results, and whether it was removed since.
    """

    hypothesis: str
    claim: str
    outcome: Outcome
    evidence: str
    confounds: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    registration: Registration = UNREGISTERED

    @property
    def mark(self) -> str:
        """`added later`, `removed later`, both, or nothing: what a reader has to know of when the claim was made."""
        added = ["added later"] if self.registration.status == "added later" else []
        return ", ".join([*added, *(["removed later"] if self.registration.removed is not None else [])])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def judge_all(claims: Sequence[MadeClaim], comparison: Comparison) -> list[Verdict]:
    """One verdict on each claim that was made, with when it was made."""
    return [
        replace(verdict, hypothesis=made.hypothesis, registration=made.registration)
        for made in claims
        for verdict in judge(made.claim, comparison)
    ]


def judge(hypothesis: str, comparison: Comparison) -> list[Verdict]:
    """One verdict a claim that names two groups; one 'not judged' verdict where there is no such claim."""
    verdicts = []
    for match in CLAIM.finditer(hypothesis):
        first, second = (_group_name(match[side], comparison) for side in ("first", "second"))
        number = _number(match["second"]) if second is None else None
        if first is not None and number is not None and match["relation"].startswith(("at ", "within ")):
            low, high = _bounds(match["relation"], match["bound"], number)
            interval = comparison.group(first).interval(comparison.metric)
            evidence = f"{first}: {comparison.metric_name} {interval_text(interval)}"
            verdicts.append(
                _audited(hypothesis, match[0], _inside(low, high, interval), evidence, comparison, (first,))
            )
            continue
        if first is None or second is None or first == second or match["relation"].startswith("at "):
            continue
        pair = comparison.pair(first, second)
        outcome = _within(float(match["bound"]), pair) if match["bound"] else _outcome(match["relation"], pair)
        evidence = f"{first} against {second}: {'not compared' if pair is None else pair.words}"
        if outcome == "undecided" and pair is not None and (strength := power_words(pair)):
            evidence += f". {strength}"
        verdicts.append(_audited(hypothesis, match[0], outcome, evidence, comparison, (first, second)))
    if not verdicts:
        evidence = f"No claim of the form 'A better than B' between runs of this comparison. {comparison.headline}"
        verdicts.append(Verdict(hypothesis, hypothesis, "not judged", evidence))
    return verdicts


def _audited(
    hypothesis: str, claim: str, outcome: Outcome, evidence: str, comparison: Comparison, names: tuple[str, ...]
) -> Verdict:
    """The verdict on a claim about the groups of these names, after an audit of their runs alone."""
    found = comparison.confounds(*names)
    if len(names) == 1:  # against a number: only what spoils the number itself
        found = [finding for finding in found if finding.check in OF_ONE_RUN]
    if outcome in DECIDED and found:
        outcome = "confounded"
        evidence = f"{evidence}, but {'; '.join(finding.sentence.rstrip('.') for finding in found)}"
    checks = tuple(dict.fromkeys(finding.check for finding in found))
    return Verdict(hypothesis, claim, outcome, evidence, checks, tuple(finding.sentence for finding in found))


def unjudged(hypothesis: str, names: Collection[str]) -> list[str]:
    """Why a hypothesis, or a claim in it, would get no verdict from runs (or architectures) of these names; one line
    each."""
    claims = list(CLAIM.finditer(hypothesis))
    if not claims:
        return [f"hypothesis: no claim of the form 'A better than B' in {hypothesis!r}: left to the reader"]
    lines = []
    for claim in claims:
        sides = [claim["first"], *([] if _number(claim["second"]) is not None else [claim["second"]])]
        for side in sides:
            if side not in names:
                lines.append(f"hypothesis: {choice_error(claim[0], side, names)}: left to the reader")
    return lines


def _outcome(relation: str, pair: PairedDifference | None) -> Outcome:
    if pair is None or pair.verdict in ("no shared seed", "one seed"):
        return "undecided"
    if relation == "not distinguishable from":
        # A test that finds nothing shows nothing: equality needs a margin, `within X of`.
        if pair.verdict == "not distinguishable":
            return "undecided"
        return "supported" if pair.verdict == "same" else "contradicted"
    if pair.verdict in ("not distinguishable", "same"):
        return "undecided"
    return "supported" if relation.startswith(pair.verdict) else "contradicted"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bounds(relation: str, bound: str | None, number: float) -> tuple[float, float]:
    """The values that a claim about a number allows: lowest, highest."""
    if bound is not None:
        return number - float(bound), number + float(bound)
    return (number, math.inf) if relation == "at least" else (-math.inf, number)


def _inside(low: float, high: float, interval: Interval | None) -> Outcome:
    """Whether the interval (of one seed: the value) lies inside the bounds, outside, or across one of them."""
    if interval is None or interval.low is None or interval.high is None:
        return "undecided"
    least, most = interval.low, interval.high
    if low <= least and most <= high:
        return "supported"
    return "contradicted" if least > high or most < low else "undecided"


def _within(bound: float, pair: PairedDifference | None) -> Outcome:
    """Whether the difference is smaller than `bound`, by two one-sided t-tests at 5 % each.

    They both reject where the 90 % interval lies inside the bounds; outside them has to lie the 95 % one.
    """
    if pair is None or pair.difference is None or pair.difference.low is None:
        return "undecided"
    if _inside(-bound, bound, t_interval(pair.values, 2 * LEVEL - 1)) == "supported":
        return "supported"
    return _inside(-bound, bound, pair.difference)


def _group_name(text: str, comparison: Comparison) -> str | None:
    if any(group.name == text for group in comparison.groups):
        return text
    if comparison.ladder is not None and (named := comparison.ladder.named(text)) is not None:
        return named
    having = [group.name for group in comparison.groups if group.reference.architecture == text]
    return having[0] if len(having) == 1 else None
