"""Whether the records are as the runs wrote them (`hf_arch.runs.digest`)."""

from __future__ import annotations

from collections.abc import Sequence

from hf_arch.analysis.finding import Finding, not_recorded
from hf_arch.analysis.run_names import code_state, run_labels, run_names
from hf_arch.runs.digest import DIGESTS
from hf_arch.runs.files import CONFIG_FILE, RESULTS_FILE
from hf_arch.runs.record import RunRecord

TAKEN_OUT = f"digest of {RESULTS_FILE} (taken out: the same code wrote one into other runs)"
MOST_NAMED = 6
"""Of what was changed in a run."""


def check_edited(runs: Sequence[RunRecord]) -> Finding | None:
    """Records that were changed after the run wrote them; a note where runs have no digest to tell by."""
    completed = [run for run in runs if run.completed]
    without = [run for run in completed if run.edited is None]
    writing = {state for run in completed if run.edited is not None and (state := code_state(run)) and "+" not in state}
    wrong = {run: what for run in completed if (what := run.edited)}
    wrong |= {run: [TAKEN_OUT] for run in without if code_state(run) in writing}
    if wrong:
        text = "; ".join(f"{run.label}: {_named(what)}" for run, what in wrong.items())
        sentence = f"Changed after the run wrote it, so that the numbers are not those measured: {text}."
        return Finding("edited", "violation", sentence, run_labels(wrong), {run.label: wrong[run] for run in wrong})
    if not completed:
        return None
    if without:
        return not_recorded("edited", "the digest", without)
    sentence = "Records are as the runs wrote them, by their digests."
    if older := [run for run in completed if not run.experiment.get(DIGESTS)]:
        sentence += f" Of before {CONFIG_FILE} had one: {run_names(older)}."
    return Finding("edited", "ok", sentence, run_labels(runs))


def _named(what: Sequence[str]) -> str:
    more = f" and {len(what) - MOST_NAMED} more" if len(what) > MOST_NAMED else ""
    return ", ".join(what[:MOST_NAMED]) + more
