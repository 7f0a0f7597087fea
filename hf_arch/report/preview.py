"""`--dry-run` of `run`, `probe` and `train`: what would be trained, how equal the runs are, and what they take."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_arch.analysis.before import count_warning, earlier_spread, power_note, seed_warnings
from hf_arch.analysis.compare import compare_runs
from hf_arch.core.errors import ConfigError
from hf_arch.core.formats import FILE_WIDTH, NOTHING, byte_size, duration, quantity
from hf_arch.evaluation.step_time import StepTimer
from hf_arch.experiments.planning.forecast import Forecast, RunForecast, forecast, step_timer
from hf_arch.experiments.planning.plan import Planner
from hf_arch.experiments.planning.prepare import PreparedSet, prepare_set
from hf_arch.experiments.planning.rates import RateSweep
from hf_arch.experiments.planning.sampling import Sampling
from hf_arch.experiments.planning.seeds import check_auto_seeds, with_seed_plan
from hf_arch.recipe.recipe import Recipe
from hf_arch.recipe.seeds import AutoSeeds
from hf_arch.report.names import explained, short_names
from hf_arch.report.table import print_skipped
from hf_arch.runs.claims import unjudged
from hf_arch.runs.files import run_folders
from hf_arch.runs.record import group_name
from hf_arch.training.arguments import DEFAULTS

NUMBERS_WIDTH = 84  # of all columns but the names
COLUMNS = ("run", "seeds", "done", "parameters", "matched", "state", "tokens", "FLOPs", "time", "memory")


def preview(
    recipe: Recipe,
    results_dir: Path,
    workers: int = 1,
    processes: int = 1,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    timer: StepTimer | None = None,
    planner: Planner | None = None,
) -> list[Forecast]:
    """What `hf-arch run` would train of a set: the sweep of its learning rates first, where it has one, then the set
    that is compared, at the rates that the sweep has chosen so far. `planner` is that of the recipe, where one was made
    to check it."""
    seeds = recipe.experiment.seeds
    if isinstance(seeds, AutoSeeds):
        check_auto_seeds(recipe)
        facts = with_seed_plan(recipe, facts)
    timer = timer or step_timer(workers * processes)
    found = []
    if recipe.experiment.learning_rates is not None:
        sweep = RateSweep(recipe, results_dir, processes)
        prepared = sweep.prepare(dry=True)
        choices = sweep.choices(prepared)
        more = []
        if any(choice.at_edge for choice in choices.values()) or not choices:
            more.append("a best rate at the end of the grid adds one rate at that end to every run")
        unnamed = replace(recipe, experiment=replace(recipe.experiment, hypothesis="", name="learning rates"))
        found.append(preview_set(unnamed, prepared, workers, processes, timer, more))
        recipe, facts = sweep.compared(choices, facts)
    elif recipe.experiment.tune is not None:
        sampling = Sampling(recipe, results_dir, processes)
        rate = float(recipe.training.get("learning_rate", DEFAULTS["learning_rate"]))
        trial = sampling.prepare(dict.fromkeys(sampling.names, rate), dry=True)
        unnamed = replace(recipe, experiment=replace(recipe.experiment, hypothesis="", name="learning rates"))
        more = ["a best rate at the end of those that were tried adds one trial to every run"]
        found.append(preview_set(unnamed, trial, workers, processes, timer, more))
        recipe, facts = sampling.compared({}, facts)
    prepared = prepare_set(recipe, results_dir, processes, facts, dry=True, planner=planner)
    more = _earlier(recipe, results_dir, prepared)
    return [*found, preview_set(recipe, prepared, workers, processes, timer, more)]


def _earlier(recipe: Recipe, results_dir: Path, prepared: PreparedSet) -> list[str]:
    """What the seeds can show at the spread of runs of the set that the results folder has already, of fewer seeds or
    of other settings: a pilot."""
    names = {group_name(name) for name in prepared.plan.names}
    here = [folder for folder in run_folders(results_dir) if folder.parent == results_dir]  # not those of a sweep
    folders = [folder for folder in here if group_name(folder.name.rpartition("_")[0]) in names]
    given = recipe.experiment.seeds
    seeds = given if isinstance(given, AutoSeeds) else len(given)
    if not folders or not recipe.experiment.hypothesis:
        return []
    try:
        return earlier_spread(recipe.experiment.hypothesis, seeds, compare_runs(folders))
    except ConfigError:  # of what is there, which `compare` and `report` name
        return []


def auto_seeds_words(seeds: AutoSeeds, found: Forecast) -> str:
    """How many runs, FLOPs and hours a set comes to whose seeds are added while a claim is undecided."""
    ends = (seeds.least, seeds.most)
    runs = " to ".join(str(count * len(found.runs)) for count in ends)
    flops = sum(run.flops or 0.0 for run in found.runs)
    total = " to ".join(quantity(count * flops) for count in ends) + " FLOPs"
    seconds = [run.seconds_each for run in found.runs]
    hours = "hours are not known"
    if None not in seconds:
        each = sum(filter(None, seconds)) / found.workers / 3600
        hours = " to ".join(f"{count * each:.3g}" for count in ends) + " hours"
    return f"seeds: {seeds.least} to {seeds.most}, as the claims need: {runs} runs, {total}, {hours}"


def preview_set(
    recipe: Recipe,
    prepared: PreparedSet,
    workers: int = 1,
    processes: int = 1,
    timer: StepTimer | None = None,
    more: list[str] | None = None,
) -> Forecast:
    """The forecast of a set that was prepared `dry`, with warnings about its claims and seeds, and `more` of them."""
    trials = recipe.experiment.tune.trials if recipe.experiment.tune is not None else 1
    found = forecast(recipe.experiment.name, prepared, workers, processes, trials, timer)
    hypothesis = recipe.experiment.hypothesis
    lines = list(more or [])
    if hypothesis:
        architectures = {str(run.recipe.model.get("architecture")) for run in prepared.plan.runs}
        lines += unjudged(hypothesis, {*prepared.plan.names, *architectures})
        given = recipe.experiment.seeds
        if isinstance(given, AutoSeeds):
            lines.append(auto_seeds_words(given, found))
        seeds = given.most if isinstance(given, AutoSeeds) else max(1, len(given))
        lines += seed_warnings(hypothesis, seeds)
        lines += [note] if (note := power_note(hypothesis, given if isinstance(given, AutoSeeds) else seeds)) else []
        if recipe.probe is not None:
            lines += [note] if (note := count_warning(hypothesis, seeds)) else []
    return replace(found, warnings=(*found.warnings, *lines))


def print_forecast(found: Forecast) -> None:
    """A row for each run of the set (its seeds together), then what all that is left takes."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)
    matched = any(run.matched is not None for run in found.runs)
    table = Table(title=found.name, title_justify="left", box=None, pad_edge=False)
    names = short_names([run.name for run in found.runs], console.width - NUMBERS_WIDTH)
    for title in COLUMNS:
        named = title == "run"
        if title != "matched" or matched:
            table.add_column(title, justify="left" if named else "right", no_wrap=named, overflow="fold")
    for run in found.runs:
        cells = zip(COLUMNS[1:], _cells(run), strict=True)
        table.add_row(Text(names[run.name]), *(cell for title, cell in cells if title != "matched" or matched))
    console.print(table)
    for line in explained(names):
        console.print(Text(line))
    print_skipped(found.skipped)
    for line in found.warnings:
        console.print(line, soft_wrap=True, markup=False)
    total = sum(run.seeds for run in found.runs)
    console.print(f"{found.to_train} of {total} runs to train, {quantity(found.flops)} FLOPs in all; {NOTHING}")
    hours = "not known: a run counts epochs of data that is not prepared" if found.hours is None else _hours(found)
    console.print(f"time on this device ({found.device}): {hours}", soft_wrap=True, markup=False)
    console.print(
        f"memory: {byte_size(found.memory_bytes)} for tensors; disk: {byte_size(found.disk_bytes)}", markup=False
    )


def _hours(found: Forecast) -> str:
    assert found.hours is not None
    return f"{duration(found.hours * 3600)} = {found.hours:.3g} h, by {found.basis}"


def _cells(run: RunForecast) -> list[str]:
    return [
        str(run.seeds),
        str(run.done),
        f"{run.params_total:,}",
        "" if run.matched is None else f"{run.matched:+.2%}",
        byte_size(run.state_bytes),
        "by epochs" if run.tokens is None else quantity(run.tokens),
        "" if run.flops is None else quantity(run.flops),
        duration(run.seconds),
        byte_size(run.memory_bytes),
    ]
