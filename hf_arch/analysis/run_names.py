"""Runs in groups, and how a sentence of the audit names them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from hf_arch.runs.record import RunRecord

T = TypeVar("T")
FEW = 6
"""Names that a sentence says one by one."""


def by_value(items: Iterable[T], value_of: Callable[[T], Any]) -> dict[Any, list[T]]:
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(value_of(item), []).append(item)
    return groups


def by_name(runs: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    return by_value(runs, lambda run: run.name)


def distinct(values: Iterable[Hashable]) -> list[Any]:
    return list(dict.fromkeys(values))


def values_by_run(kinds: Mapping[Any, Iterable[RunRecord]]) -> dict[str, Any]:
    """{label of a run: its value}, of runs grouped by value."""
    return {run.label: value for value, runs in kinds.items() for run in runs}


def run_labels(runs: Iterable[RunRecord]) -> tuple[str, ...]:
    return tuple(distinct(run.label for run in runs))


def run_names(runs: Iterable[RunRecord]) -> str:
    return listed(distinct(run.name for run in runs))


def listed(names: Sequence[str], limit: int = FEW) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def shares_of(found: Mapping[str, float], each: Callable[[str, float], str], spelt: str = "{:.0%}") -> str:
    """`each` of a name and its value, joined; of many names the range, and where its ends are."""
    if len(found) <= FEW:
        return ", ".join(each(name, share) for name, share in found.items())
    least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    return f"{spelt.format(found[least])} ({least}) to {spelt.format(found[most])} ({most})"


def together(names: Sequence[str], word: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return f" {word} ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def either(names: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return together(names, "or")


def rates_text(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.3g}" for rate in rates)


def run_count(runs: Sequence[RunRecord]) -> str:
    return f"{len(runs)} run{'s' if len(runs) != 1 else ''}"


def code_state(run: RunRecord) -> Any:
    """What distinguishes two states of the code: the digest of the sources, or the commit."""
    return run.provenance.get("source_sha256") or run.provenance.get("git_commit")
