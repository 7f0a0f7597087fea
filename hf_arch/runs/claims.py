"""The grammar of claims: what of a hypothesis, which is free text, a program can judge.

    A better than B        A worse than B        A not distinguishable from B        A within 0.1 of B
    A at least 0.99        A at most 1.9         A within 0.05 of 1.88
    A solves more often than B                   A reaches 0.9 less often than B     (counts of seeds)
    A solves in at least 0.8 of its seeds        A reaches 1.9 in at most 0.5 of its seeds

A and B are names of runs, or of architectures that one run has. `A and B better than C` is two claims, and so is `A
better than B and C`.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.runs.record import group_name

_NUMBER = r"\d*\.?\d+"
CLAIM = re.compile(
    r"(?P<first>[\w.+=/-]+)\s+(?:(?:is|are)\s+)?(?P<relation>"
    rf"(?:solves|reaches (?P<reached>{_NUMBER})) (?:more|less) often than"
    rf"|(?:solves|reaches (?P<level>{_NUMBER})) in at (?:least|most)"
    rf"|better than|worse than|not distinguishable from|at least|at most|within (?P<bound>{_NUMBER}) of"
    r")\s+(?P<second>[\w.+=/-]*\w)(?P<seeds> of (?:its|the) seeds)?"
)
_NAME = r"[\w.+=/-]*\w"
_SEVERAL = re.compile(
    r"(?P<lead>^|[.;:,(] |\b(?i:that|whether|both|expect|claim|then|hypothesis|is) )"
    rf"(?P<firsts>(?:{_NAME}, )*{_NAME},? and )?(?P<claim>{CLAIM.pattern})"
    rf"(?P<seconds>(?:, {_NAME})*,? and {_NAME}(?=$|[.;,)](?: |$)))?"
)
"""A claim with further names that "and" joins to its sides, where these begin and end a clause."""


def spelled_out(hypothesis: str) -> str:
    """The hypothesis with single spaces, and a claim for each of the runs that "and" joins: `A and B better than C` as
    `A better than C; B better than C`. Names in the middle of a clause are left as they are (`unjudged` names them)."""

    def each(match: re.Match[str]) -> str:
        firsts = [*re.findall(_NAME, (match["firsts"] or "").removesuffix("and ")), match["first"]]
        seconds = [match["second"], *re.findall(_NAME, re.sub(r",? and ", ", ", match["seconds"] or ""))]
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
    return lines


def check_joined(hypothesis: str, names: Collection[str]) -> None:
    """Raises ConfigError where "and" joins one of these runs (or architectures) to a claim in a way that is no claim
    about it, so that half of what was meant would be judged."""
    known = {group_name(name) for name in names}
    claims = claim_matches(hypothesis)
    starts, ends = {one.start() for one in claims}, {one.end() for one in claims}
    for claim in claims:
        left_out = []
        before = re.search(rf"({_NAME}),? and $", claim.string[: claim.start()])
        if before is not None and before.end(1) not in ends:
            left_out.append((before[1], f"{before[1]} {claim['relation']} {claim['second']}"))
        after = re.match(rf",? and ({_NAME})", claim.string[claim.end() :])
        if after is not None and claim.end() + after.start(1) not in starts:
            left_out.append((after[1], f"{claim['first']} {claim['relation']} {after[1]}"))
        for name, meant in left_out:
            if name in known:
                raise ConfigError(
                    f"experiment.hypothesis: {claim[0]!r} would be judged without {name!r}; write a claim for each "
                    f"run: '{meant}; {claim[0]}'",
                    field="experiment.hypothesis",
                )


def number_in(text: str) -> float | None:
    """The number that a side of a claim is, None where it is a name."""
    try:
        return float(text)
    except ValueError:
        return None
