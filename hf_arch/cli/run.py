"""What `hf-arch run` does: the set of a recipe, or each of the sets that it names."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_arch.analysis.compare import undecided_claims
from hf_arch.analysis.controls import claimed_pairs
from hf_arch.core.errors import ConfigError
from hf_arch.experiments.execution.runner import RunOptions, processes_per_run
from hf_arch.experiments.execution.sets import run_set
from hf_arch.experiments.planning.controls import plan_controls
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
    controls: bool = False,
) -> int:
    """Trains, compares and reports, or with `dry_run` shows what would be trained; the exit code (1: a run failed).

    With `controls` the runs are added that remove the confounds of the claims.
    """
    command = " ".join(
        ["hf-arch run", str(path), *([f"--scale {scale}"] if scale else []), *map(shlex.quote, overrides)]
    )
    recipe = load_recipe(path, overrides, scale)
    folder = Path(results_dir) if results_dir is not None else set_folder(recipe)
    if not recipe.experiment.sets:
        return 1 if _run_one(recipe, folder, options, dry_run, controls, command) else 0
    recipes = [load_recipe(Path(path).parent / entry, overrides, scale) for entry in recipe.experiment.sets]
    for entry in recipes:
        Planner(entry)  # a mistake in the last set should show before the first is trained
    failed = [
        run
        for entry in recipes
        for run in _run_one(entry, folder / entry.experiment.name, options, dry_run, controls, command)
    ]
    if not dry_run and next(run_folders(folder), None) is not None:
        write_suite_results(folder)
    print_failed(failed)
    return 1 if failed else 0


def _run_one(
    recipe: Recipe, results_dir: Path, options: RunOptions, dry_run: bool, controls: bool, command: str
) -> list[ReadyRun]:
    """The runs of one set that did not complete."""
    facts: dict[str, dict[str, Any]] = {}
    if controls and recipe.experiment.ladder is not None:
        raise ConfigError("--controls: not together with experiment.ladder; name the controls as experiment.runs")
    if controls:
        recipe, facts = _with_controls(recipe)
    for name in recipe.experiment.runs or [recipe.experiment.name]:
        facts[name] = {**facts.get(name, {}), "command": command}
    if dry_run:
        preview(recipe, results_dir, processes_per_run(options), facts)
        return []
    trained = run_set(recipe, results_dir, options, facts, undecided_claims)
    conclude(trained, results_dir, recipe.experiment.study)
    return trained.failed


def _with_controls(recipe: Recipe) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """The set with its controls, and what these record; each is said, and what no control removes.

    Raises `ConfigError` where no claim of the hypothesis compares two runs.
    """
    runs = {
        name: str({**recipe.model, **((changes or {}).get("model") or {})}.get("architecture"))
        for name, changes in recipe.experiment.runs.items()
    }
    pairs = claimed_pairs(recipe.experiment.hypothesis, runs)
    if not pairs:
        raise ConfigError(
            "--controls: experiment.hypothesis has no claim of the form 'A better than B' between its runs"
        )
    planned = plan_controls(recipe, pairs)
    for stage in planned.stages:
        print(
            f"control: {' against '.join(stage.runs)} for {' against '.join(stage.pair)}: {stage.words}",
            file=sys.stderr,
        )
    for note in planned.notes:
        print(f"control: not possible: {note}", file=sys.stderr)
    if not planned.stages and not planned.notes:
        print("control: nothing separates the sides of the claims before training", file=sys.stderr)
    return planned.recipe, planned.facts
