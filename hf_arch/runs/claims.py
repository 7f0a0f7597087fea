"""The grammar of claims: what of a hypothesis, which is free text, a program can judge.

    A better than B        A worse than B        A not distinguishable from B        A within 0.1 of B
    A at least 0.99        A at most 1.9         A within 0.05 of 1.88
    A solves more often than B                   A reaches 0.9 less often than B     (counts of seeds)
    A solves in at least 0.8 of its seeds        A reaches 1.9 in at most 0.5 of its seeds

A and B are names of runs, or of architectures that one run has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from hf_arch.core.errors import choice_error
from hf_arch.runs.record import group_name

_NUMBER = r"\d*\.?\d+"
CLAIM = re.compile(
    r"(?P<first>[\w.+=/-]+)\s+(?:is\s+)?(?P<relation>"
    rf"(?:solves|reaches (?P<reached>{_NUMBER})) (?:more|less) often than"
    rf"|(?:solves|reaches (?P<level>{_NUMBER})) in at (?:least|most)"
    rf"|better than|worse than|not distinguishable from|at least|at most|within (?P<bound>{_NUMBER}) of"
    r")\s+(?P<second>[\w.+=/-]*\w)(?P<seeds> of (?:its|the) seeds)?"
)


def claim_matches(hypothesis: str) -> list[re.Match[str]]:
    """What of a hypothesis has the form of a claim, in text with single spaces.

    Not one that "or" joins to another run (`A or B better than C`): one of two comparisons holds more easily than
    each, and no test here is of that. Two whole claims with "or" between them are judged each by itself.
    """
    text = " ".join(hypothesis.split())
    found = list(CLAIM.finditer(text))
    starts, ends = {match.start() for match in found}, {match.end() for match in found}

    def is_one_of_several(match: re.Match[str]) -> bool:
        before = re.search(r",? or $", text[: match.start()])
        after = re.match(r",? or (?=\w)", text[match.end() :])
        joined_before = before is not None and before.start() > 0 and before.start() not in ends
        return joined_before or (after is not None and match.end() + after.end() not in starts)

    return [match for match in found if not is_one_of_several(match)]


def claims_in(hypothesis: str) -> tuple[str, ...]:
    """The claims of a hypothesis, each once, with single spaces; the whole text where it holds none, () where it is
    empty."""
    text = " ".join(hypothesis.split())
    found = dict.fromkeys(match[0] for match in claim_matches(text))
    return tuple(found) or ((text,) if text else ())


def unjudged(hypothesis: str, names: Collection[str]) -> list[str]:
    """Why a hypothesis, or part of a claim in it, would get no verdict from runs (or architectures) of these names.

    One line each. Runs at several learning rates or seeds are compared under one name: claims name them without these.
    """
    known = {group_name(name) for name in names}
    claims = claim_matches(hypothesis)
    if not claims:
        return [f"hypothesis: no claim of the form 'A better than B' in {hypothesis!r}; nothing will be judged"]
    lines = []
    for claim in claims:
        sides = [claim["first"], *([] if number_in(claim["second"]) is not None else [claim["second"]])]
        for side in sides:
            if side not in known:
                lines.append(f"hypothesis: {choice_error(claim[0], side, known)}; this claim will not be judged")
        for name in _joined(claim, claims):
            if name in known:
                lines.append(f"hypothesis: {claim[0]!r} is judged without {name!r}; write a claim for each run")
    return lines


def _joined(claim: re.Match[str], claims: Sequence[re.Match[str]]) -> list[str]:
    """Words that "and" joins to a side of a claim and that are no part of another: `A and B better than C` is judged of
    B alone."""
    before = re.search(r"([\w.+=/-]+),? and $", claim.string[: claim.start()])
    after = re.match(r",? and ([\w.+=/-]*\w)", claim.string[claim.end() :])
    ends, starts = {one.end() for one in claims}, {one.start() for one in claims}
    found = [] if before is None or before.end(1) in ends else [before[1]]
    return found if after is None or claim.end() + after.start(1) in starts else [*found, after[1]]


def number_in(text: str) -> float | None:
    """The number that a side of a claim is, None where it is a name."""
    try:
        return float(text)
    except ValueError:
        return None
