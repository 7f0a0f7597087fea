"""The end of a set: the suite's files, the comparison on the terminal, the study and the page, from one reading."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.comparison import Comparison
from hf_arch.experiments.execution.runner import TrainedSet
from hf_arch.experiments.planning.prepare import ReadyRun
from hf_arch.report.page import write_report
from hf_arch.report.search import print_study, write_study
from hf_arch.report.table import print_comparison, print_skipped
from hf_arch.runs.files import run_folders
from hf_arch.runs.suite import find_runs, write_suite_results


def conclude(trained: TrainedSet, results_dir: Path, study: str | None = None) -> Comparison | None:
    """Writes the suite's files, and prints and reports the comparison of the set's own runs; None where none completed.

    Every run folder is read once: its record is in the suite's files, in the comparison and on the page.
    """
    skipped = trained.prepared.plan.skipped
    own = {run.folder.resolve() for run in trained.prepared.runs}
    records = find_runs(results_dir) if next(run_folders(results_dir), None) is not None else []
    started = [record for record in records if record.path.resolve() in own]
    comparison = None
    if started:
        write_suite_results(results_dir, {entry.name: entry.reason for entry in skipped}, records)
    if any(record.status == "completed" for record in started):
        comparison = compare_runs(started)
        print_comparison(comparison)
        print_skipped(skipped)
        if study == "search":
            print_study(write_study(comparison, results_dir))
        print(f"report: {write_report(results_dir, comparison=comparison)}")
    print_failed(trained.failed)
    return comparison


def print_failed(failed: Sequence[ReadyRun]) -> None:
    """The runs that did not complete, with the reason of each, on stderr."""
    for run in failed:
        print(f"failed: {run.folder}: {run.reason}", file=sys.stderr, flush=True)
