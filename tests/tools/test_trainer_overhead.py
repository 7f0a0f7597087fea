"""The measurement of the trainer's overhead compares like with like."""

from __future__ import annotations

import pytest

from tools.trainer_overhead import measure, ratios


@pytest.mark.slow
def test_each_variant_is_timed_in_each_round() -> None:
    times = measure("llama", steps=1, rounds=2)
    assert set(times) == {"loop", "fp32", "bf16"}
    assert all(len(taken) == 2 and min(taken) > 0 for taken in times.values())


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == "3.000 (2.000 to 4.000)"
