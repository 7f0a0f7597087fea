"""Numbers as they are written: what is shown is known, and large ones can be read."""

from __future__ import annotations

import pytest

from hf_arch.analysis.stats import paired_difference
from hf_arch.core.formats import with_half_width


@pytest.mark.parametrize(
    ("mean", "half_width", "text"),
    [
        (1.523, 0.012, "1.523 ± 0.012"),
        (0.5, 0.00004, "0.50000 ± 0.00004"),
        (802_500_000.0, 2_054_260.257, "802,500,000 ± 2,054,260"),
        (10_008.9, None, "10,009"),
        (None, None, "–"),
    ],
)
def test_a_mean_with_its_interval(mean: float | None, half_width: float | None, text: str) -> None:
    assert with_half_width(mean, half_width) == text


def test_a_difference_of_bytes_can_be_read() -> None:
    first = {1: 802_500_000.0, 2: 803_000_000.0, 3: 801_000_000.0}
    second = {seed: value - 2e6 - 1e4 * seed for seed, value in first.items()}
    words = paired_difference("a", "b", first, second, lower_is_better=True).words
    assert words == "worse by 2,020,000 [1,995,159, 2,044,841]"
