"""Traps in the words of a claim: the numbers support its core, and the sentence says something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.traps.test_planted import judged
from tests.traps.test_sides import rename_claim


@pytest.mark.parametrize(
    "claim",
    [
        "gla better than llama by 0.5",
        "gla better than llama by at least 50 %",
        "gla at most 1.9 bits per byte",
        "gla at most 1,2",
        "gla within 0.02 of 1.5 bits",
        "llama worse than gla in bits_per_byte",
        "gla better than llama only on long rows",
        "gla better than llama after 10 steps",
        "neither gla nor mamba better than llama",
        "We doubt that gla is better than llama.",
        "gla cannot be better than llama",
        "gla is not better than llama",
    ],
)
def test_words_that_turn_a_claim_leave_it_unjudged(claim: str, tmp_path: Path) -> None:
    judged(tmp_path, {}, {})
    rename_claim(tmp_path, claim)
    assert {verdict.outcome for verdict in compare_runs(tmp_path).verdicts} == {"not judged"}


def test_a_claim_next_to_one_that_is_turned_is_judged_and_both_are_shown(tmp_path: Path) -> None:
    judged(tmp_path, {}, {})
    rename_claim(tmp_path, "gla better than llama; llama better than gla by 0.5")
    first, second = compare_runs(tmp_path).verdicts
    assert (first.outcome, second.outcome) == ("supported", "not judged")
    assert second.claim == "llama better than gla by 0.5"
