"""What is said before anything is trained agrees with what is judged afterwards."""

from __future__ import annotations

import pytest

from hf_arch.analysis.before import count_warning
from hf_arch.analysis.counts import barnard, least_seeds

CLAIMS = "a better than b; a better than c; a better than d"


@pytest.mark.parametrize(("claims", "seeds", "warns"), [(1, 3, False), (2, 3, True), (3, 3, True), (3, 4, False)])
def test_counts_that_cannot_decide_are_said(claims: int, seeds: int, warns: bool) -> None:
    said = count_warning(";".join(CLAIMS.split(";")[:claims]), seeds)
    assert bool(said) == warns == (barnard(seeds, seeds, 0, seeds) * claims > 0.05)
    if warns:
        needed = least_seeds(0.05 / claims)
        assert needed is not None and barnard(needed, needed, 0, needed) * claims <= 0.05
        assert f"take {needed} or more" in said and not count_warning(CLAIMS, needed)


def test_without_claims_nothing_is_said() -> None:
    assert count_warning("all are alike", 3) == ""
