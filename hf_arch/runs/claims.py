"""The grammar of claims: what of a hypothesis, which is free text, a program can judge.

    A better than B        A worse than B        A not distinguishable from B        A within 0.1 of B
    A at least 0.99        A at most 1.9         A within 0.05 of 1.88
    A solves more often than B                   A reaches 0.9 less often than B     (counts of seeds)
    A solves in at least 0.8 of its seeds        A reaches 1.9 in at most 0.5 of its seeds

A and B are names of runs, or of architectures that one run has. `A and B better than C` is two claims, and so is `A
better than B and C`. Words around a claim that say something else than it does (`better than B by 0.1`, `at most 1.9
bits`, `neither A nor B better than C`) leave it unjudged, and a set with one is refused before it trains
(`hf_arch.runs.claim_checks`).
"""

from __future__ import annotations

import re
from collections.abc import Collection

from hf_arch.core.errors import choice_error
from hf_arch.runs.record import group_name

NUMBER = r"\d*\.?\d+(?:e[+-]?\d+)?"
CLAIM = re.compile(
    r"(?P<first>[\w.+=/-]+)\s+(?:(?:is|are)\s+)?(?P<relation>"
    rf"(?:solves|reaches (?P<reached>{NUMBER})) (?:more|less) often than"
    rf"|(?:solves|reaches (?P<level>{NUMBER})) in at (?:least|most)"
    rf"|better than|worse than|not distinguishable from|at least|at most|within (?P<bound>{NUMBER}) of"
    r")\s+(?P<second>[\w.+=/-]*\w)(?P<seeds> of (?:its|the) seeds)?"
)
NAME = r"[\w.+=/-]*\w"
_SEVERAL = re.compile(
    r"(?P<lead>^|[.;:,(] |\b(?i:that|whether|both|expect|claim|then|hypothesis|is) )"
    rf"(?P<firsts>(?:{NAME}, )*{NAME},? and )?(?P<claim>{CLAIM.pattern})"
    rf"(?P<seconds>(?:, {NAME})*,? and {NAME}(?=$|[.;,)](?: |$)))?"
)
"""A claim with further names that "and" joins to its sides, where these begin and end a clause."""
CLAUSE_END = re.compile(r"[;:()]|[.,](?=\s|$)")
_TURNED = re.compile(
    r"(?i:\b(?:neither|nor|not|never|cannot|doubt\w*|false|untrue|wrong|unlikely|impossible|if|unless)\b|n't\b)"
)
"""Words before a claim, in its clause, that deny it or make it a condition."""
_QUALIFIED = re.compile(
    rf"(?i:,? (?:but |and )?(?:if|unless|only|when|until|except|provided|by|after {NUMBER}|at {NUMBER})\b)"
    r"|(?i: (?:in|on|by) (?:its |the )?(?:bits|perplexity|accuracy|speed|memory|throughput)\w*)"
    r"|(?i: in (?!final_val_loss)\w*_\w+)"
)
"""Words after a claim that make it a narrower one, or one of another number."""
_UNIT = re.compile(r" ?%|,\d|(?i: (?!and\b|or\b|but\b|in (?:validation )?loss\b)[a-z]\w*)")
"""What follows the number of a claim and gives it a unit, or another decimal point."""


def spelled_out(hypothesis: str) -> str:
    """The hypothesis with single spaces, and a claim for each of the runs that "and" joins: `A and B better than C` as
    `A better than C; B better than C`. Names in the middle of a clause are left as they are (`unjudged` names them)."""

    def each(match: re.Match[str]) -> str:
        firsts = [*re.findall(NAME, (match["firsts"] or "").removesuffix("and ")), match["first"]]
        seconds = [match["second"], *re.findall(NAME, re.sub(r",? and ", ", ", match["seconds"] or ""))]
        if len(firsts) == len(seconds) == 1:
            return match[0]
        claims = [f"{a} {match['relation']} {b}{match['seeds'] or ''}" for a in firsts for b in seconds]
        return match["lead"] + "; ".join(claims)

    return _SEVERAL.sub(each, " ".join(hypothesis.split()))


def claim_matches(hypothesis: str) -> list[re.Match[str]]:
    """What of a hypothesis has the form of a claim, in `spelled_out` text.

    Not one that "or" joins to another run (`A or B better than C`): one of two comparisons holds more easily than
    each, and no test here is of that. Two whole claims with "or" between them are judged each by itself.
    """
    text = spelled_out(hypothesis)
    found = list(CLAIM.finditer(text))
    starts, ends = {match.start() for match in found}, {match.end() for match in found}

    def is_one_of_several(match: re.Match[str]) -> bool:
        before = re.search(r",? or $", text[: match.start()])
        after = re.match(r",? or (?=\w)", text[match.end() :])
        joined_before = before is not None and before.start() > 0 and before.start() not in ends
        return joined_before or (after is not None and match.end() + after.end() not in starts)

    return [match for match in found if not is_one_of_several(match) and altered(match) is None]


def altered(match: re.Match[str]) -> str | None:
    """The clause around a claim where its other words say something else than the claim does, else None."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    lead = CLAUSE_END.split(before)[-1]
    lead = lead[max((claim.end() for claim in CLAIM.finditer(lead)), default=0) :]
    ends = CLAUSE_END.search(after)
    tail = after if ends is None else after[: ends.start()]
    has_unit = number_in(match["second"]) is not None and not match["seeds"] and _UNIT.match(after)
    if has_unit or _QUALIFIED.match(after) or _TURNED.search(lead):
        return f"{lead}{match[0]}{after[: len(tail)]}".strip()
    return None


def claims_in(hypothesis: str) -> tuple[str, ...]:
    """The claims of a hypothesis, each once, with single spaces; the whole text where it holds none, () where it is
    empty."""
    text = " ".join(hypothesis.split())
    found = dict.fromkeys(match[0] for match in claim_matches(text))
    if not found:
        return (text,) if text else ()
    return (*found, *dict.fromkeys(clause for match in CLAIM.finditer(spelled_out(text)) if (clause := altered(match))))


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
    return lines


def number_in(text: str) -> float | None:
    """The number that a side of a claim is, None where it is a name."""
    try:
        return float(text)
    except ValueError:
        return None
