"""What `hf-arch run` does: the set of a recipe, or each of the sets that it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_arch.experiments.execution.runner import RunOptions, processes_per_run
from hf_arch.experiments.execution.sets import run_set
from hf_arch.experiments.planning.plan import Planner
from hf_arch.experiments.planning.prepare import ReadyRun, set_folder
from hf_arch.recipe.recipe import Recipe, load_recipe
from hf_arch.report.conclude import conclude, print_failed
from hf_arch.report.preview import preview
from hf_arch.runs.files import run_folders
from hf_arch.runs.suite import write_suite_results


def run_recipe(
    path: str | Path,
    results_dir: str | Path | None,
    options: RunOptions,
    *,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
) -> int:
    """Trains, compares and reports, or with `dry_run` shows what would be trained; the exit code (1: a run failed)."""
    recipe = load_recipe(path, overrides, scale)
    folder = Path(results_dir) if results_dir is not None else set_folder(recipe)
    if not recipe.experiment.sets:
        return 1 if _run_one(recipe, folder, options, dry_run) else 0
    recipes = [load_recipe(Path(path).parent / entry, overrides, scale) for entry in recipe.experiment.sets]
    for entry in recipes:
        Planner(entry)  # a mistake in the last set should show before the first is trained
    failed = [run for entry in recipes for run in _run_one(entry, folder / entry.experiment.name, options, dry_run)]
    if not dry_run and next(run_folders(folder), None) is not None:
        write_suite_results(folder)
    print_failed(failed)
    return 1 if failed else 0


def _run_one(recipe: Recipe, results_dir: Path, options: RunOptions, dry_run: bool) -> list[ReadyRun]:
    """The runs of one set that did not complete."""
    if dry_run:
        preview(recipe, results_dir, processes_per_run(options))
        return []
    trained = run_set(recipe, results_dir, options)
    conclude(trained, results_dir, recipe.experiment.study)
    return trained.failed
