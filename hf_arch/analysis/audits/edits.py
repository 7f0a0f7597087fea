"""Whether the records are as the runs wrote them (`hf_arch.runs.digest`)."""

from __future__ import annotations

from collections.abc import Sequence

from hf_arch.analysis.finding import Finding, not_recorded
from hf_arch.analysis.run_names import run_labels
from hf_arch.runs.record import RunRecord

MOST_NAMED = 6
"""Of what was changed in a run."""


def check_edited(runs: Sequence[RunRecord]) -> Finding | None:
    """Records that were changed after the run wrote them; a note where runs have no digest to tell by."""
    completed = [run for run in runs if run.completed]
    if wrong := {run: what for run in completed if (what := run.edited)}:
        text = "; ".join(f"{run.label}: {_named(what)}" for run, what in wrong.items())
        sentence = f"Changed after the run wrote it, so that the numbers are not those measured: {text}."
        return Finding("edited", "violation", sentence, run_labels(wrong), {run.label: wrong[run] for run in wrong})
    without = [run for run in completed if run.edited is None]
    if not completed:
        return None
    if without:
        return not_recorded("edited", "the digest", without)
    return Finding("edited", "ok", "Records are as the runs wrote them, by their digests.", run_labels(runs))


def _named(what: Sequence[str]) -> str:
    more = f" and {len(what) - MOST_NAMED} more" if len(what) > MOST_NAMED else ""
    return ", ".join(what[:MOST_NAMED]) + more
