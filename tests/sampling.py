"""Which cases of a costly test the fast suite runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import count

import pytest

LATER = ("slow", "rest", "conformance", "distributed", "ecosystem", "fla_interpreter", "gpu")
"""Marks of what the fast suite does not run anyway."""


def mark_the_rest(items: Iterable[pytest.Item]) -> None:
    """Marks as `rest` what a test that is `sampled(n)` has beyond n cases, which lie evenly in their order.

    Raises:
        pytest.UsageError: a number of cases below 1.
    """
    sampled: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled") and not any(item.get_closest_marker(mark) for mark in LATER):
            sampled[item.nodeid.partition("[")[0]].append(item)
    for name, cases in sampled.items():
        (wanted,) = cases[0].get_closest_marker("sampled").args  # type: ignore[union-attr]
        if wanted < 1:
            raise pytest.UsageError(f"{name}: sampled({wanted}), and a test has at least one case")
        taken = {number * len(cases) // wanted for number in range(wanted)}
        for number, case in zip(count(), cases, strict=False):
            if number not in taken:
                case.add_marker("rest")
