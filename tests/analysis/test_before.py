"""What is said before anything is trained agrees with what is judged afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_arch.analysis.before import count_warning, earlier_spread
from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.counts import barnard, constant_level, least_seeds
from hf_arch.analysis.power import smallest_difference
from tests.experiments.synthetic import write_run

CLAIMS = "a better than b; a better than c; a better than d"


@pytest.mark.parametrize(("claims", "seeds", "warns"), [(1, 3, False), (2, 3, True), (3, 3, True), (3, 4, False)])
def test_counts_that_cannot_decide_are_said(claims: int, seeds: int, warns: bool) -> None:
    said = count_warning(";".join(CLAIMS.split(";")[:claims]), seeds)
    assert bool(said) == warns == (barnard(seeds, seeds, 0, seeds) * claims > 0.05)
    if warns:
        needed = least_seeds(constant_level(0.05 / claims))
        assert needed is not None and barnard(needed, needed, 0, needed) * claims <= 0.05
        assert f"take {needed} or more" in said and not count_warning(CLAIMS, needed)


def test_without_claims_nothing_is_said() -> None:
    assert count_warning("all are alike", 3) == ""


def test_a_pilot_says_what_seeds_can_show(tmp_path: Path) -> None:
    """The smallest difference is that of the power that is printed beside the verdicts, at the pilot's spread."""
    claim = "gla better than llama"
    for seed in (1, 2, 3):
        for name, loss in (("gla", 1.5 + seed**2 / 100), ("llama", 1.55 + seed / 100)):
            write_run(tmp_path, name, seed, loss=loss, hypothesis=claim)
    comparison = compare_runs(tmp_path)
    pair = comparison.pair("gla", "llama")
    assert pair is not None and pair.difference is not None and pair.difference.std is not None
    least = {seeds: smallest_difference(pair.difference.std, seeds) for seeds in (3, 8)}
    assert f"one of {abs(pair.difference.mean):.3g} needs" in comparison.verdicts[0].evidence
    assert f"a difference of {least[3]:.3g} with" in comparison.verdicts[0].evidence
    [said] = earlier_spread(claim, 8, comparison)
    assert f"8 seeds and 1 claim find a difference of {least[8]:.2g} in validation loss between gla and llama" in said
    assert earlier_spread("gla better than mamba", 8, comparison) == [] == earlier_spread(claim, 1, comparison)
    write_run(tmp_path / "one", "gla", 1, hypothesis=claim)
    assert earlier_spread(claim, 8, compare_runs(tmp_path / "one")) == []
