"""What a set cannot answer, said before it is trained: claims that its seeds cannot decide."""

from __future__ import annotations

from collections.abc import Collection
from math import comb

from hf_arch.analysis.power import smallest_difference
from hf_arch.analysis.verdicts import CLAIM

LEAST_SEEDS = 3
"""Below this a difference has to be more than ten times its own spread over seeds to be found."""


def seed_warnings(hypothesis: str, groups: Collection[str], seeds: int) -> list[str]:
    """Sentences about the claims of a hypothesis that `seeds` seeds of each of these `groups` cannot decide, or only
    where the difference is huge; none where there is no claim."""
    claims = [match[0] for match in CLAIM.finditer(hypothesis)]
    if not claims or seeds >= LEAST_SEEDS:
        return []
    if seeds < 2:
        return [f"seeds: one seed decides nothing, so {claim!r} will be undecided; take 3 or more" for claim in claims]
    family = max(1, comb(len(groups), 2))
    least = smallest_difference(1.0, seeds, family)
    return [
        f"seeds: {seeds} can hardly decide {claims[0]!r}: a difference is found (80 % power, corrected for {family} "
        f"pair{'s' if family > 1 else ''}) only above {least:.0f} times its spread over seeds; take 3 or more"
    ]


def power_note(hypothesis: str, groups: Collection[str], seeds: int) -> str:
    """What so many seeds can show, in units of the spread that only the runs will tell; empty without a claim."""
    if seeds < LEAST_SEEDS or CLAIM.search(hypothesis) is None or len(groups) < 2:
        return ""
    family = comb(len(groups), 2)
    least = smallest_difference(1.0, seeds, family)
    return (
        f"power: {seeds} seeds and {family} pair{'s' if family > 1 else ''} find a difference of {least:.2g} times its "
        "spread over seeds (the standard deviation of the paired differences) with 80 % power"
    )
