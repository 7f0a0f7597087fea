"""A set trained and compared: at its end the files of the suite, the comparison, the study and the page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_arch.analysis.compare import compare_runs, undecided_claims
from hf_arch.analysis.comparison import Comparison
from hf_arch.experiments.execution.runner import RunOptions, TrainedSet
from hf_arch.experiments.execution.sets import run_set
from hf_arch.experiments.planning.plan import Planner
from hf_arch.experiments.planning.prepare import ReadyRun
from hf_arch.recipe.recipe import Recipe
from hf_arch.report.page import write_report
from hf_arch.report.search import print_study, write_study
from hf_arch.report.table import print_comparison, print_skipped
from hf_arch.runs.files import run_folders
from hf_arch.runs.suite import find_runs, write_suite_results


def run_and_conclude(
    recipe: Recipe,
    results_dir: Path,
    options: RunOptions | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    planner: Planner | None = None,
) -> tuple[TrainedSet, Comparison | None]:
    """Trains what is not finished of one set (`run_set`), then compares it (`conclude`)."""
    looks: list[Comparison] = []

    def undecided(folders: Sequence[Path]) -> list[str]:
        looks.append(compare_runs(sorted(folders)))
        return undecided_claims(looks[-1])

    trained = run_set(recipe, results_dir, options, facts, undecided, planner)
    return trained, conclude(trained, results_dir, recipe.experiment.study, looks[-1] if looks else None)


def conclude(
    trained: TrainedSet, results_dir: Path, study: str | None = None, known: Comparison | None = None
) -> Comparison | None:
    """Writes the suite's files, and prints and reports the comparison of the set's own runs; None where none completed.

    Every run folder is read once: its record is in the suite's files, in the comparison and on the page. `known` is a
    comparison that was made before; it is taken where it is of these very runs.
    """
    skipped = trained.prepared.plan.skipped
    own = {run.folder.resolve() for run in trained.prepared.runs}
    records = find_runs(results_dir) if next(run_folders(results_dir), None) is not None else []
    started = [record for record in records if record.path.resolve() in own]
    comparison = None
    if started:
        write_suite_results(results_dir, {entry.name: entry.reason for entry in skipped}, records)
    if any(record.status == "completed" for record in started):
        of = set() if known is None else {run.path.resolve() for run in known.runs}
        comparison = known if known and of == {record.path.resolve() for record in started} else compare_runs(started)
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
