"""What `hf-arch run` does: the set of a recipe, or each of the sets that it names."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_arch.analysis.comparison import Comparison
from hf_arch.analysis.controls import claimed_pairs
from hf_arch.cli.output import only_results_on_stdout, print_json
from hf_arch.core.errors import ConfigError
from hf_arch.evaluation.step_time import StepTimer
from hf_arch.experiments.execution.runner import RunOptions, TrainedSet, processes_per_run
from hf_arch.experiments.planning.controls import declared_architectures, plan_controls
from hf_arch.experiments.planning.forecast import Forecast, document, step_timer
from hf_arch.experiments.planning.plan import Planner
from hf_arch.experiments.planning.prepare import set_folder
from hf_arch.experiments.planning.rates import RATE
from hf_arch.recipe.recipe import Recipe, load_recipe
from hf_arch.report.conclude import print_failed, run_and_conclude
from hf_arch.report.preview import preview, print_forecast
from hf_arch.runs.files import run_folders
from hf_arch.runs.suite import write_suite_results


@dataclass(frozen=True)
class Changes:
    """What `--seeds`, `--match` and `--learning-rate` change of every set; they are written as overrides."""

    seeds: int | None = None
    match: str | None = None
    rates: tuple[float, ...] = ()

    def overrides(self, recipe: Recipe) -> list[str]:
        """As `key=value`. One rate is the rate of every run; several, or one where the recipe tries several, are the
        rates that every run tries."""
        texts = [] if self.seeds is None else [f"experiment.seeds={self.seeds}"]
        texts += [] if self.match is None else [f"experiment.match.by={self.match}"]
        rates = list(dict.fromkeys(self.rates))
        if len(rates) > 1 or (rates and RATE in recipe.experiment.matrix):
            texts.append(f"experiment.matrix.{RATE}=[{', '.join(map(str, rates))}]")
        elif rates:
            texts.append(f"{RATE}={rates[0]}")
        return texts


def run_recipe(
    path: str | Path,
    results_dir: str | Path | None,
    options: RunOptions,
    *,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    changes: Changes | None = None,
    dry_run: bool = False,
    controls: bool = False,
    as_json: bool = False,
) -> int:
    """Trains, compares and reports, or with `dry_run` shows what would be trained; the exit code (1: a run failed).

    With `controls` the runs are added that remove the confounds of the claims. With `as_json` stdout gets one JSON
    document alone: the forecast of a dry run, else the comparison (of several sets: one for each, under `sets`).
    """
    if not as_json:
        return _run_recipe(path, results_dir, options, scale, overrides, changes or Changes(), dry_run, controls)[0]
    with only_results_on_stdout():
        code, found = _run_recipe(path, results_dir, options, scale, overrides, changes or Changes(), dry_run, controls)
    print_json(found)
    return code


def _run_recipe(
    path: str | Path,
    results_dir: str | Path | None,
    options: RunOptions,
    scale: str | None,
    overrides: Sequence[str],
    changes: Changes,
    dry_run: bool,
    controls: bool,
) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of all sets."""
    recipe = load_recipe(path, overrides, scale)
    several = bool(recipe.experiment.sets)
    loaded = [_load(file, overrides, changes, scale) for file in _files(path, recipe)]
    recipes, added = [entry for entry, _ in loaded], loaded[0][1]
    words = [*(f"--scale {scale}" for _ in range(scale is not None)), *map(shlex.quote, [*overrides, *added])]
    words += ["--results-dir", shlex.quote(str(results_dir))] if results_dir is not None else []
    command = " ".join(["hf-arch run", shlex.quote(str(path)), *words])
    folder = Path(results_dir) if results_dir is not None else set_folder(recipe)
    # A mistake in the last set should show before the first is trained.
    planners = [Planner(entry) if several else None for entry in recipes]
    folders = [folder / entry.experiment.name if several else folder for entry in recipes]
    if dry_run:
        timer = step_timer(options.workers * processes_per_run(options))
        forecasts = [
            found
            for entry, place, planner in zip(recipes, folders, planners, strict=True)
            for found in _preview_one(entry, place, options, controls, timer, planner)
        ]
        return 0, document(forecasts)
    failed, compared = [], {}
    for entry, place, planner in zip(recipes, folders, planners, strict=True):
        trained, comparison = _train_one(entry, place, options, controls, command, planner)
        failed += trained.failed
        compared[entry.experiment.name] = {} if comparison is None else comparison.to_dict()
    if several:
        if next(run_folders(folder), None) is not None:
            write_suite_results(folder)
        print_failed(failed)
    return (1 if failed else 0), {"sets": compared} if several else next(iter(compared.values()))


def _files(path: str | Path, recipe: Recipe) -> list[str | Path]:
    """The recipe of each set: those that it names, else itself."""
    return [Path(path).parent / entry for entry in recipe.experiment.sets] or [path]


def _load(file: str | Path, overrides: Sequence[str], changes: Changes, scale: str | None) -> tuple[Recipe, list[str]]:
    """The recipe with the changes of the command line, and these as overrides."""
    recipe = load_recipe(file, overrides, scale)
    added = changes.overrides(recipe)
    return (load_recipe(file, [*overrides, *added], scale) if added else recipe), added


def _preview_one(
    recipe: Recipe, results_dir: Path, options: RunOptions, controls: bool, timer: StepTimer, planner: Planner | None
) -> list[Forecast]:
    """What one set would take, printed."""
    facts: dict[str, dict[str, Any]] = {}
    if controls:
        recipe, facts = _with_controls(recipe, dry=True)
    forecasts = preview(recipe, results_dir, options.workers, processes_per_run(options), facts, timer, planner)
    for found in forecasts:
        print_forecast(found)
    return forecasts


def _train_one(
    recipe: Recipe, results_dir: Path, options: RunOptions, controls: bool, command: str, planner: Planner | None
) -> tuple[TrainedSet, Comparison | None]:
    """One set, trained and compared."""
    facts: dict[str, dict[str, Any]] = {}
    if controls:
        recipe, facts = _with_controls(recipe)
    for name in recipe.experiment.runs or [recipe.experiment.name]:
        # No command adds controls to runs that a matrix makes.
        facts[name] = {**facts.get(name, {}), "command": command if recipe.experiment.runs else ""}
    return run_and_conclude(recipe, results_dir, options, facts, planner)


def _with_controls(recipe: Recipe, dry: bool = False) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """The set with its controls, and what these record; each is said, and what no control removes.

    Raises `ConfigError` where no claim of the hypothesis compares two runs.
    """
    if recipe.experiment.ladder is not None:
        raise ConfigError("--controls: not together with experiment.ladder; name the controls as experiment.runs")
    pairs = claimed_pairs(recipe.experiment.hypothesis, declared_architectures(recipe))
    if not pairs:
        raise ConfigError(
            "--controls: experiment.hypothesis has no claim of the form 'A better than B' between its runs"
        )
    planned = plan_controls(recipe, pairs, dry)
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
