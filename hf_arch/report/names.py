"""Names of runs where room is short: whole, or without their middle and still distinct."""

from __future__ import annotations

from collections.abc import Iterable

LEAST_WIDTH = 12
SHARES = (0.35, 0.5, 0.65, 0.2, 0.8, 0.0, 1.0)
"""Of the characters that are kept, how many are the name's first ones; tried in this order."""


def short_names(names: Iterable[str], width: int) -> dict[str, str]:
    """{name: what to print of it in `width` characters}, no two equal: the name, or `start…end` where it is longer.

    Where no cut keeps all names distinct, the shortened ones begin with their number (`3…end`).
    """
    all_names = list(dict.fromkeys(names))
    width = max(width, LEAST_WIDTH)
    for share in SHARES:
        short = {name: _cut(name, width, round(share * (width - 1))) for name in all_names}
        if len(set(short.values())) == len(all_names):
            return short
    cut = {name: f"{i}…" for i, name in enumerate(all_names, 1)}
    return {name: name if len(name) <= width else cut[name] + name[len(cut[name]) - width :] for name in all_names}


def explained(short: dict[str, str]) -> list[str]:
    """A line `start…end: the whole name` for each name that was shortened."""
    return [f"{text}: {name}" for name, text in short.items() if text != name]


def _cut(name: str, width: int, start: int) -> str:
    if len(name) <= width:
        return name
    end = width - 1 - start
    return f"{name[:start]}…{name[-end:] if end else ''}"
