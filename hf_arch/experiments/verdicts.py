"""Verdicts: what the numbers say about a hypothesis.

A hypothesis is free text. Where it holds claims of the form

    A better than B        A worse than B        A not distinguishable from B        A within 0.1 of B

with A and B names of runs (or of architectures that one run has), each claim is judged by the paired difference of
the table; `within` by its 95 % interval, which has to lie inside the bounds. Text without such a claim gets no verdict
from a program: the reader judges it, with the result beside it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_arch.experiments.stats import PairedDifference

if TYPE_CHECKING:
    from hf_arch.experiments.comparison import Comparison

Outcome = Literal["supported", "contradicted", "undecided", "not judged"]

CLAIM = re.compile(
    r"(?P<first>[\w.+=-]+)\s+(?:is\s+)?"
    r"(?P<relation>better than|worse than|not distinguishable from|within (?P<bound>\d*\.?\d+) of)\s+"
    r"(?P<second>[\w.+=-]*\w)"
)


@dataclass(frozen=True)
class Verdict:
    """One claim of a hypothesis (or the whole text, where it holds none) with the outcome and the evidence in words."""

    hypothesis: str
    claim: str
    outcome: Outcome
    evidence: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def judge(hypothesis: str, comparison: Comparison) -> list[Verdict]:
    """One verdict a claim that names two groups; one 'not judged' verdict where there is no such claim."""
    verdicts = []
    for match in CLAIM.finditer(hypothesis):
        first, second = (_group_name(match[side], comparison) for side in ("first", "second"))
        if first is None or second is None or first == second:
            continue
        pair = comparison.pair(first, second)
        outcome = _within(float(match["bound"]), pair) if match["bound"] else _outcome(match["relation"], pair)
        evidence = f"{first} against {second}: {'not compared' if pair is None else pair.words}"
        verdicts.append(Verdict(hypothesis, match[0], outcome, evidence))
    if not verdicts:
        evidence = f"No claim of the form 'A better than B' between runs of this comparison. {comparison.headline}"
        verdicts.append(Verdict(hypothesis, hypothesis, "not judged", evidence))
    return verdicts


def _outcome(relation: str, pair: PairedDifference | None) -> Outcome:
    if pair is None or pair.verdict in ("no shared seed", "one seed"):
        return "undecided"
    if relation == "not distinguishable from":
        return "supported" if pair.verdict in ("not distinguishable", "same") else "contradicted"
    if pair.verdict in ("not distinguishable", "same"):
        return "undecided"
    return "supported" if relation.startswith(pair.verdict) else "contradicted"


def _within(bound: float, pair: PairedDifference | None) -> Outcome:
    """Whether the difference is smaller than `bound`: where its interval lies inside the bounds, outside, or across."""
    if pair is None or pair.difference is None or pair.difference.low is None or pair.difference.high is None:
        return "undecided"
    low, high = pair.difference.low, pair.difference.high
    if -bound <= low and high <= bound:
        return "supported"
    return "contradicted" if low > bound or high < -bound else "undecided"


def _group_name(text: str, comparison: Comparison) -> str | None:
    if any(group.name == text for group in comparison.groups):
        return text
    having = [group.name for group in comparison.groups if group.reference.architecture == text]
    return having[0] if len(having) == 1 else None
