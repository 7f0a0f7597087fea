"""What of a hypothesis is refused before a set trains: text that reads as a claim about its runs and would not be
judged as it reads.

Free text stays free: a clause is looked at where it has the form of a claim, or compares two names of the set in other
words than those of a claim. A claim about runs that are not in the set is a warning (`unjudged`), since a set may be
run in part.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

from hf_arch.core.errors import ConfigError
from hf_arch.runs.claims import CLAIM, CLAUSE_END, NAME, NUMBER, altered, claim_matches, number_in, spelled_out
from hf_arch.runs.record import group_name

FIELD = "experiment.hypothesis"
RELATIONS = (
    *("better than", "worse than", "not distinguishable from", "at least", "at most", "within X of"),
    *("solves more often than", "solves less often than", "reaches X more often than", "reaches X less often than"),
    *("solves in at least", "solves in at most", "reaches X in at least", "reaches X in at most"),
)
_MOST_WORDS = 6
"""Between two sides of what may be a claim in other words."""
_ALIKE = 0.7
"""From where on `difflib` calls words a relation with a slip in it."""
_JOINING = ("and", "or", "but", "yet", "though")


def check_claims(hypothesis: str, names: Collection[str]) -> None:
    """Raises ConfigError of one line where a hypothesis about runs (or architectures) of these names says what no claim
    says, or half of what one would."""
    known = {group_name(name) for name in names}
    text = spelled_out(hypothesis)
    for match in CLAIM.finditer(text):
        _check_words(match)
        _check_sides(match, known)
    _check_joined(hypothesis, known)
    for clause in CLAUSE_END.split(text):
        if CLAIM.search(clause) is None:
            _check_relation(clause.strip(), known)


def _refuse(said: str, why: str) -> ConfigError:
    return ConfigError(f"{FIELD}: {said!r}: {why}", field=FIELD)


def _check_words(match: re.Match[str]) -> None:
    """The words around a claim leave it as it is."""
    if (clause := altered(match)) is not None:
        raise _refuse(
            clause,
            "says something else than a claim does, and would not be judged; allowed: a claim alone, such as "
            f"{match[0]!r}, its numbers in the unit of `experiment.metric`; nearest: leave the other words to "
            "`experiment.description`",
        )


def _check_sides(match: re.Match[str], known: Collection[str]) -> None:
    """Both sides are of the kind that the relation compares, and one of them is no word of the sentence."""
    first, relation, second = match["first"], match["relation"], match["second"]
    number = number_in(second)
    if first == second and first in known:
        raise _refuse(match[0], "compares a run with itself; allowed: another run, or a number")
    if relation in ("at least", "at most") and first in known and second in known:
        near = "better than" if relation == "at least" else "worse than"
        raise _refuse(match[0], f"{relation!r} needs a number; between runs, nearest: '{first} {near} {second}'")
    if relation.endswith(("than", "from")) and first in known and number is not None:
        raise _refuse(
            match[0], f"{relation!r} needs a run; with a number, nearest: '{first} at least {second}' or at most"
        )
    if " in at " in relation and number is not None and not 0 <= number <= 1:
        raise _refuse(match[0], f"{second} is not a share of seeds; allowed: 0 to 1")
    before = CLAUSE_END.split(match.string[: match.start()])[-1]
    after = CLAUSE_END.split(match.string[match.end() :])[0]
    for side, beside in ((first, before), (second, after)):
        if side in known or not side.isalpha():
            continue
        if side.lower() in _JOINING:
            raise _refuse(match[0], f"has no run on its left; allowed: a claim such as 'RUN {relation} {second}'")
        meant = next((word for word in re.findall(NAME, beside)[-2:] if word in known), None)
        if meant is not None and CLAIM.search(beside) is None:
            said = " ".join(f"{before} {match[0]} {after}".split())
            near = _as_claim(match, side, meant)
            raise _refuse(said, f"{side!r} is not the name of a run; allowed: a claim such as {near!r}")


def _as_claim(match: re.Match[str], side: str, meant: str) -> str:
    first, second = (meant if text == side else text for text in (match["first"], match["second"]))
    return f"{first} {match['relation']} {second}"


def _check_relation(clause: str, known: Collection[str]) -> None:
    """A clause with a run, then few words, then another run or a number: its words are no relation of a claim."""
    tokens = list(re.finditer(NAME, clause))
    for place, token in enumerate(tokens):
        following = tokens[place + 2 : place + 2 + _MOST_WORDS] if token[0] in known else []
        for last in sorted(following, key=lambda one: one[0] not in known):  # 'within 0.1 bits of RUN' ends at the run
            is_run = last[0] in known
            if not (is_run or number_in(last[0]) is not None) or last[0] == token[0]:
                continue
            words = re.sub(r"^(is|are) ", "", clause[token.end() : last.start()].strip())
            near = get_close_matches(re.sub(NUMBER, "X", words), RELATIONS, n=1, cutoff=_ALIKE)
            if words.startswith(_JOINING) or not (near or (is_run and words.endswith(" than"))):
                continue
            number = re.search(NUMBER, words)
            form = (near[0] if near else "better than").replace("X", number[0] if number else "X")
            raise _refuse(
                clause[token.start() : last.end()],
                f"no claim has this form; nearest: '{token[0]} {form} {last[0]}'; allowed: {', '.join(RELATIONS)}",
            )


def _check_joined(hypothesis: str, known: Collection[str]) -> None:
    """Raises ConfigError where "and" joins one of the `known` names to a claim in a way that is no claim
    about it, so that half of what was meant would be judged."""
    claims = claim_matches(hypothesis)
    starts, ends = {one.start() for one in claims}, {one.end() for one in claims}
    for claim in claims:
        left_out = []
        before = re.search(rf"({NAME}),? and $", claim.string[: claim.start()])
        if before is not None and before.end(1) not in ends:
            left_out.append((before[1], f"{before[1]} {claim['relation']} {claim['second']}"))
        after = re.match(rf",? and ({NAME})", claim.string[claim.end() :])
        if after is not None and claim.end() + after.start(1) not in starts:
            left_out.append((after[1], f"{claim['first']} {claim['relation']} {after[1]}"))
        for name, meant in left_out:
            if name in known:
                raise ConfigError(
                    f"experiment.hypothesis: {claim[0]!r} would be judged without {name!r}; write a claim for each "
                    f"run: '{meant}; {claim[0]}'",
                    field="experiment.hypothesis",
                )
