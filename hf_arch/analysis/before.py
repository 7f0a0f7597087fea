"""What a set cannot answer, said before it is trained: claims that its seeds cannot decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_arch.analysis.controls import claimed_pairs
from hf_arch.analysis.counts import barnard, constant_level, least_seeds
from hf_arch.analysis.power import smallest_difference
from hf_arch.analysis.sequential import look_levels
from hf_arch.analysis.stats import LEVEL
from hf_arch.recipe.seeds import AutoSeeds
from hf_arch.runs.claims import claim_matches

if TYPE_CHECKING:
    from hf_arch.analysis.comparison import Comparison

LEAST_SEEDS = 3
"""Below this a difference has to be more than ten times its own spread over seeds to be found."""


def seed_warnings(hypothesis: str, seeds: int) -> list[str]:
    """Sentences about the claims of a hypothesis that `seeds` seeds of each run cannot decide, or only where the
    difference is huge; none where there is no claim."""
    claims = _claims(hypothesis)
    if not claims or seeds >= LEAST_SEEDS:
        return []
    if seeds < 2:
        return [f"seeds: one seed decides nothing, so {claim!r} will be undecided; take 3 or more" for claim in claims]
    return [
        f"seeds: {seeds} can hardly decide {claims[0]!r}: a difference is found (80 % power, {_family(claims)}) only "
        f"above {smallest_difference(1.0, seeds, len(claims)):.0f} times its spread over seeds; take 3 or more"
    ]


def power_note(hypothesis: str, seeds: int | AutoSeeds) -> str:
    """What so many seeds can show, in units of the spread that only the runs will tell; empty without a claim."""
    claims = _claims(hypothesis)
    if not claims or (isinstance(seeds, int) and seeds < LEAST_SEEDS):
        return ""
    least = _smallest_difference(1.0, seeds, claims)
    return (
        f"power: {_seeds(seeds)} and {_family(claims)} find a difference of {least:.2g} times its spread over seeds "
        "(the standard deviation of the paired differences) with 80 % power"
    )


def earlier_spread(hypothesis: str, seeds: int | AutoSeeds, earlier: Comparison) -> list[str]:
    """What `seeds` seeds can show of each claim at the spread of `earlier` runs of the same names, in sentences; none
    for a claim whose two runs have fewer than two seeds in common there."""
    claims, lines = _claims(hypothesis), []
    architectures = {group.name: group.reference.architecture for group in earlier.groups}
    for first, second in claimed_pairs(hypothesis, architectures) if seeds != 1 else ():
        pair = earlier.pair(first, second)
        found = None if pair is None else pair.difference
        if found is None or not found.std or found.n < 2:
            continue
        least = _smallest_difference(found.std, seeds, claims)
        lines.append(
            f"power: at the spread of the {found.n} seeds that are there already ({found.std:.2g}), {_seeds(seeds)} "
            f"and {_family(claims)} find a difference of {least:.2g} in {earlier.metric_name} between {first} and "
            f"{second} with 80 % power"
        )
    return lines


def count_warning(hypothesis: str, seeds: int) -> str:
    """Of a probe, whose solved seeds are counted as soon as one solves it: where so many seeds a side cannot decide the
    claims, even if all of one side and none of the other solve it; else empty."""
    claims = _claims(hypothesis)
    if not claims or seeds < LEAST_SEEDS or barnard(seeds, seeds, 0, seeds) * len(claims) <= 1 - LEVEL:
        return ""
    least, needed = barnard(seeds, seeds, 0, seeds), least_seeds(constant_level((1 - LEVEL) / len(claims)))
    return (
        f"seeds: if a seed solves the probe, {seeds} seeds cannot decide {_family(claims)}: all against none has "
        f"p = {min(1.0, least * len(claims)):.2g} after Holm; take {needed} or more"
    )


def _claims(hypothesis: str) -> list[str]:
    return list(dict.fromkeys(match[0] for match in claim_matches(hypothesis)))


def _smallest_difference(std: float, seeds: int | AutoSeeds, claims: Sequence[str]) -> float:
    """By the tests of the claims together: where seeds are added as needed, by that of the last look."""
    if not isinstance(seeds, AutoSeeds):
        return smallest_difference(std, seeds, len(claims))
    level = look_levels(seeds, constant_level((1 - LEVEL) / len(claims)))
    return smallest_difference(std, seeds.most, (1 - LEVEL) / level(seeds.most))


def _seeds(seeds: int | AutoSeeds) -> str:
    return f"{seeds.most} seeds, looked at from {seeds.least} on," if isinstance(seeds, AutoSeeds) else f"{seeds} seeds"


def _family(claims: Sequence[str]) -> str:
    """Claims are corrected as one family."""
    return f"{len(claims)} claim{'s' if len(claims) > 1 else ''}"
