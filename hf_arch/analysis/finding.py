"""A finding of the audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hf_arch.analysis.question import is_asked
from hf_arch.analysis.run_names import by_value, run_labels, run_names
from hf_arch.runs.record import RunRecord

Severity = Literal["violation", "note", "ok"]
SEVERITIES: tuple[Severity, ...] = ("violation", "note", "ok")


@dataclass(frozen=True)
class Finding:
    """One sentence of the audit, and the runs that it concerns (all of them where it holds for every run).

    check: its name, of `analysis.checks`. values: the numbers that the sentence speaks of, plain values by name.
    """

    check: str
    severity: Severity
    sentence: str
    runs: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def same_fingerprint(runs: Sequence[RunRecord], what: str) -> Finding:
    """A finding for a fingerprint that every run should share: `data` or `tokenizer`."""
    return same(
        runs,
        what,
        lambda run: getattr(run, f"{what}_fingerprint"),
        ok=lambda value: f"Same {what} (fingerprint {str(value)[:12]}).",
        differs=f"{what.capitalize()} differs",
        show=lambda value: str(value)[:12],
        unknown=f"{what}_fingerprint",
    )


def same(
    runs: Sequence[RunRecord],
    check: str,
    value_of: Callable[[RunRecord], Any],
    *,
    ok: Callable[[Any], str],
    differs: str,
    show: Callable[[Any], str],
    unknown: str,
) -> Finding:
    """A finding for a value that every run should share."""
    values = by_value([run for run in runs if value_of(run) is not None], value_of)
    if len(values) > 1:
        text = "; ".join(f"{show(value)}: {run_names(group)}" for value, group in values.items())
        severity: Severity = "note" if is_asked(check, runs) else "violation"
        return Finding(
            check, severity, f"{differs}: {text}.", run_labels(runs), {run.label: value_of(run) for run in runs}
        )
    if missing := [run for run in runs if value_of(run) is None and run.completed]:
        return not_recorded(check, unknown, missing)
    if not values:
        return Finding(check, "note", f"{check.capitalize()}: nothing completed, nothing to check.", run_labels(runs))
    return Finding(check, "ok", ok(next(iter(values))), run_labels(runs))


def not_recorded(check: str, key: str, runs: Sequence[RunRecord]) -> Finding:
    """The note of a check that lacks what it needs."""
    sentence = f"{check.capitalize()}: cannot be checked, {key} is not recorded for {run_names(runs)}."
    return Finding(check, "note", sentence, run_labels(runs))
