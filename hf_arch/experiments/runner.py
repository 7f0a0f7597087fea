"""Runs a set: plans it, prepares its data, trains every run in its own process, compares, and writes the report.

A finished run (same name and hash) is skipped, an interrupted one goes on from its last checkpoint, a failed one is
tried again. The folders are `<results_dir>/<name>_<hash>`. Started twice, or on several machines with one results
folder, the runs are shared out: `hf_arch.experiments.worker`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.data import prepare_data
from hf_arch.environment import read
from hf_arch.experiments.comparison import compare_runs
from hf_arch.experiments.folders import run_folder
from hf_arch.experiments.plan import Plan, Skipped, plan_runs
from hf_arch.experiments.process import train_command
from hf_arch.experiments.progress import Progress
from hf_arch.experiments.recipe import RUN_FACTS, Recipe, load_recipe
from hf_arch.experiments.report import write_report
from hf_arch.experiments.store import group_name, is_run, run_folders, write_suite_results
from hf_arch.experiments.worker import ReadyRun, Suite, WorkerOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGINES = ("local", "slurm")


@dataclass(frozen=True)
class RunOptions:
    """How a set is run: `workers` runs at a time, by the `engine`; `distributed` as `hf-arch run` explains it,
    `slurm` parameters of the jobs as `key=value`, and `dry_run` to show the runs without starting them.
    """

    workers: int = 1
    engine: str = "local"
    distributed: str = "auto"
    scale: str | None = None
    overrides: tuple[str, ...] = ()
    slurm: tuple[str, ...] = ()
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"--workers: expected at least 1, got {self.workers}")
        if self.engine not in ENGINES:
            raise choice_error("--engine", self.engine, ENGINES)
        if self.slurm and self.engine != "slurm":
            raise ConfigError(f"--slurm: {self.slurm[0]!r} is for --engine slurm; the engine is {self.engine!r}")
        if self.distributed not in ("auto", "always", "never"):
            raise choice_error("--distributed", self.distributed, ["auto", "always", "never"])


@dataclass(frozen=True)
class PreparedSet:
    """The runs of a set with their folders, what of its matrix cannot be, how it was matched, and the tokenizers of its
    data by `Recipe.data_key`.
    """

    runs: list[ReadyRun]
    plan: Plan
    tokenizers: Mapping[str, PreTrainedTokenizerBase]


def prepare_set(recipe: Recipe, results_dir: Path, processes: int = 1) -> PreparedSet:
    """Plans and matches a set and names its folders. Data is prepared here, once for all runs that share it.

    Several `processes` in one run make its batches larger, so they are part of its name.

    Raises `ConfigError` for anything wrong in any run, before any of them starts.
    """
    planned = plan_runs(recipe, match=False).runs  # a mistake should show before data is prepared
    options = {run.recipe.data_key: run.recipe.data for run in planned if run.recipe.probe is None}
    prepared = {key: prepare_data(entry) for key, entry in options.items()}
    tokenizers = {key: entry.tokenizer for key, entry in prepared.items()}
    plan = plan_runs(recipe, tokenizers)
    facts = _set_facts(recipe, plan)
    runs = []
    for run in plan.runs:
        data = prepared.get(run.recipe.data_key)
        points_to = [] if data is None else [data.fingerprint]
        points_to += [f"{processes} processes"] if processes > 1 else []
        own = {"name": run.name, "hash": run.recipe.stable_hash(*points_to), **facts}
        folder = run_folder(run.recipe, results_dir, run.name, *points_to)
        config = {**run.recipe.to_dict(), RUN_FACTS: own}
        runs.append(ReadyRun(run.name, folder, config, run.recipe.training.get("max_steps")))
    return PreparedSet(runs, plan, tokenizers)


def _set_facts(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """What each run of a set records of the set: the run that others are compared to, and how they were matched."""
    match = recipe.experiment.match
    reference = match.reference if match is not None and match.reference else plan.runs[0].name
    facts: dict[str, Any] = {}
    if len(plan.names) > 1:
        baseline = next(run.name for run in plan.runs if reference in (run.declared, run.name))
        facts["baseline"] = group_name(baseline)
    if (tune := recipe.experiment.tune) is not None:
        facts["tune"] = {"low": tune.low, "high": tune.high, "trials": tune.trials}
    if match is not None:
        facts["match"] = {"by": match.by, "tolerance": match.tolerance, "reference": reference}
    return facts


def select_run(recipe: Recipe, name: str | None, output_dir: str | None) -> tuple[Recipe, Path]:
    """The one run to train, matched as in its set, and its folder: `output_dir`, or `results/[<set>/]<name>_<hash>`.

    Raises `ConfigError` where the recipe declares several runs and `name` chooses none of them.
    """
    planned = plan_runs(recipe, match=False).runs
    names = list(dict.fromkeys(run.name for run in planned))
    if name is not None and name not in names:
        raise choice_error("--run", name, names)
    chosen = [run for run in planned if name in (None, run.name)]
    if name is None and len(names) > 1:
        raise ConfigError(
            f"the recipe declares {len(names)} runs; use `hf-arch run`, or choose one by --run: {', '.join(names)}"
        )
    if len(chosen) > 1:
        seeds = recipe.experiment.seeds
        raise ConfigError(
            f"run {chosen[0].name!r} has {len(seeds)} seeds; use `hf-arch run`, or choose one by "
            f"experiment.seeds=[{seeds[0]}]: {', '.join(map(str, seeds))}"
        )
    if output_dir is not None and recipe.experiment.match is None:
        return chosen[0].recipe, Path(output_dir)
    parent = Path("results", recipe.experiment.name) if recipe.experiment.is_set else Path("results")
    prepared = prepare_set(recipe, parent)
    number = [run.name for run in prepared.runs].index(chosen[0].name)
    folder = Path(output_dir) if output_dir is not None else prepared.runs[number].folder
    return prepared.plan.runs[number].recipe, folder


def run_recipe(path: str | Path, results_dir: str | Path | None, options: RunOptions) -> int:
    """`hf-arch run`: the set of a recipe, or each of the sets that it names; the exit code (1: a run failed)."""
    recipe = load_recipe(path, options.overrides, options.scale)
    folder = Path(results_dir) if results_dir is not None else set_folder(recipe)
    if not recipe.experiment.sets:
        return 1 if run_set(recipe, folder, options) else 0
    recipes = [
        load_recipe(Path(path).parent / entry, options.overrides, options.scale) for entry in recipe.experiment.sets
    ]
    for entry in recipes:
        plan_runs(entry, match=False)  # a mistake in the last set should show before the first is trained
    failed = [run for entry in recipes for run in run_set(entry, folder / entry.experiment.name, options)]
    if not options.dry_run and next(run_folders(folder), None) is not None:
        write_suite_results(folder)
    _tell_failed(failed)
    return 1 if failed else 0


def set_folder(recipe: Recipe) -> Path:
    """Where the results of a set lie by default."""
    return Path("results") / recipe.experiment.name


def run_set(recipe: Recipe, results_dir: Path, options: RunOptions | None = None) -> list[ReadyRun]:
    """Trains, compares and reports one set; prints what it does, and returns the runs that did not complete."""
    options = options or RunOptions()
    prepared = prepare_set(recipe, results_dir, processes_per_run(options))
    if options.dry_run:
        from hf_arch.experiments.preview import print_preview

        print_preview(recipe, prepared)
        return []
    if recipe.experiment.tune is not None:
        from hf_arch.experiments.tune import train_tuned

        prepared, failed = train_tuned(recipe, results_dir, options)
    else:
        failed = train_set(prepared, results_dir, options)
    _conclude(prepared, results_dir, recipe.experiment.study)
    _tell_failed(failed)
    return failed


def train_set(prepared: PreparedSet, results_dir: Path, options: RunOptions) -> list[ReadyRun]:
    """Trains what is not finished by the engine of the options; returns the runs that did not complete."""
    tell = partial(print, file=sys.stderr, flush=True)
    for name, matched in {run.name: run.matched for run in prepared.plan.runs if run.matched is not None}.items():
        tell(f"{name}: {matched.describe()}")
    with _stop_in_order(), Progress(prepared.runs, prepared.plan.skipped) as progress:
        for run in prepared.runs:
            if run.status == "completed":
                progress.tell(run, "finished already")
        if options.engine == "slurm":
            from hf_arch.experiments.slurm import run_on_slurm, slurm_parameters

            at_once = options.workers if options.workers > 1 else None
            failed = run_on_slurm(
                prepared.runs,
                results_dir,
                slurm_parameters(options.slurm),
                at_once,
                progress.tell,
                job_options(options),
            )
        else:
            failed = Suite(prepared.runs, results_dir, worker_options(options), progress.tell).work()
    return failed


def _conclude(prepared: PreparedSet, results_dir: Path, study: str | None) -> None:
    """Writes the suite's files, and prints and reports the comparison where anything completed."""
    started = [run.folder for run in prepared.runs if is_run(run.folder)]
    if not started:
        return
    write_suite_results(results_dir, {entry.name: entry.reason for entry in prepared.plan.skipped})
    if not any(run.status == "completed" for run in prepared.runs):
        return
    comparison = compare_runs(started)
    comparison.print()
    print_skipped(prepared.plan.skipped)
    if study == "search":
        from hf_arch.experiments.search import write_study

        write_study(comparison, results_dir).print()
    print(f"report: {write_report(results_dir, runs=started)}")


def print_skipped(skipped: Sequence[Skipped]) -> None:
    """The rows that the table cannot have."""
    for entry in skipped:
        print(f"skipped: {entry.name}: {entry.reason}")


def _tell_failed(failed: Sequence[ReadyRun]) -> None:
    for run in failed:
        print(f"failed: {run.folder}: {run.reason}", file=sys.stderr, flush=True)


def worker_options(options: RunOptions) -> WorkerOptions:
    """Each worker with its share of the cores and of the GPUs."""
    gpus, processes = visible_gpus(), processes_per_run(options)
    threads = max(1, cores() // (options.workers * processes))

    def environment(worker: int) -> Mapping[str, str]:
        changes = {}
        if options.workers * processes > 1:
            changes["OMP_NUM_THREADS"] = read("OMP_NUM_THREADS") or str(threads)
        if share := gpus[worker :: options.workers]:
            # One GPU even where the share is larger: Trainer would spread one process over all that it sees.
            changes["CUDA_VISIBLE_DEVICES"] = ",".join(share if processes > 1 else share[:1])
        return changes

    command: Callable[[Path, Path], list[str]] = partial(train_command, processes=processes)
    return WorkerOptions(workers=options.workers, command=command, environment=environment)


def job_options(options: RunOptions) -> WorkerOptions:
    """One worker with all that its job was given."""
    return WorkerOptions(command=partial(train_command, processes=processes_per_run(options)))


def processes_per_run(options: RunOptions) -> int:
    """One, unless `--distributed always`: then one for each GPU of a worker's share, at least two."""
    if options.distributed != "always":
        return 1
    return max(2, len(visible_gpus()) // options.workers)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names of the GPUs as CUDA_VISIBLE_DEVICES takes them; none on a machine without."""
    named = read("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def _stop_in_order() -> Iterator[None]:
    """A polite end (SIGTERM, as a cluster or `kill` sends it) stops like Ctrl-C; either says how to go on."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if in_main else None
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoints", file=sys.stderr, flush=True)
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
