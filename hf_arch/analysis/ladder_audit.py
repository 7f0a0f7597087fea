"""The audit of a ladder, rung by rung: runs of one size and budget are compared with each other and with no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hf_arch.analysis.audit import audit
from hf_arch.analysis.finding import SEVERITIES, Finding
from hf_arch.analysis.run_names import by_value
from hf_arch.runs.record import RunRecord


def audit_by_rung(runs: Sequence[RunRecord]) -> list[Finding]:
    """Each check once, with what is worst at any rung; where that differs from rung to rung, the first rung is named,
    and how many others it is the same at."""
    found: dict[str, dict[str, Finding]] = {}
    for place, members in by_value(runs, _place).items():
        for finding in audit(members):
            found.setdefault(finding.check, {})[place] = finding
    return sorted((_worst(rungs) for rungs in found.values()), key=lambda one: SEVERITIES.index(one.severity))


def _worst(rungs: dict[str, Finding]) -> Finding:
    severity = min((finding.severity for finding in rungs.values()), key=SEVERITIES.index)
    at = {place: finding for place, finding in rungs.items() if finding.severity == severity}
    (place, first), *others = at.items()
    runs = tuple(dict.fromkeys(label for finding in at.values() for label in finding.runs))
    if len(at) == len(rungs) and all(finding.sentence == first.sentence for finding in at.values()):
        return replace(first, runs=runs)
    more = f" ({severity} at {len(others)} more)" if others else ""
    where = "At each size and budget, for example at" if severity == "ok" else "At"
    sentence = f"{where} {place}{'' if severity == 'ok' else more}: {first.sentence}"
    return replace(first, sentence=sentence, runs=runs)


def _place(run: RunRecord) -> str:
    own = run.experiment.get("ladder") or {}
    if not own:
        return "runs of no ladder"
    return f"{own['size']:,.0f} parameters and {own['tokens_per_parameter']:g} tokens each"
