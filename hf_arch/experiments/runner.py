"""Runs a set: every run in its own process and folder, so that one that fails harms no other.

A finished run (same name and hash) is skipped, an interrupted one resumes from its last checkpoint, a failed one is
tried again from there. The folders are `<results_dir>/<name>_<hash>`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hf_arch.data import prepare_data
from hf_arch.errors import ConfigError, choice_error
from hf_arch.experiments.comparison import compare_command
from hf_arch.experiments.match import Matched
from hf_arch.experiments.plan import plan_runs
from hf_arch.experiments.recipe import Recipe
from hf_arch.experiments.report import report_command
from hf_arch.experiments.store import CONFIG_FILE, RESULTS_FILE, read_json, write_json_atomic, write_suite_results

LOG_FILE = "log.txt"


@dataclass(frozen=True)
class ReadyRun:
    """A planned run after matching, with the folder that it will fill."""

    name: str
    recipe: Recipe
    folder: Path
    matched: Matched | None

    @property
    def status(self) -> str | None:
        """What its results file says, or None before there is one."""
        results = self.folder / RESULTS_FILE
        return str(read_json(results).get("status")) if results.is_file() else None

    @property
    def reason(self) -> str:
        """Why the run ended as it did, in its own words."""
        results = self.folder / RESULTS_FILE
        if not results.is_file():
            return "ended before it wrote any results"
        return str(read_json(results).get("provenance", {}).get("exit_reason", "unknown"))


def prepare_runs(recipe: Recipe, results_dir: Path) -> list[ReadyRun]:
    """Plans and matches a set and names its folders. Data is prepared here, once for all runs that share it.

    Raises `ConfigError` for anything wrong in any run, before any of them starts.
    """
    planned = plan_runs(recipe, match=False).runs  # a mistake should show before data is prepared
    data = {run.recipe.data_key: run.recipe.data for run in planned}
    prepared = {key: prepare_data(options) for key, options in data.items()}
    ready = []
    for run in plan_runs(recipe, {key: entry.tokenizer for key, entry in prepared.items()}).runs:
        identity = run.recipe.stable_hash(prepared[run.recipe.data_key].fingerprint)
        ready.append(ReadyRun(run.name, run.recipe, results_dir / f"{run.name}_{identity}", run.matched))
    return ready


def select_run(recipe: Recipe, name: str | None, output_dir: str | None) -> tuple[Recipe, Path]:
    """The one run to train, matched as in its set, and its folder: `output_dir`, or `results/[<set>/]<name>_<hash>`.

    Raises `ConfigError` where the recipe declares several runs and `name` chooses none of them.
    """
    planned = plan_runs(recipe, match=False).runs
    names = list(dict.fromkeys(run.name for run in planned))
    if name is not None and name not in names:
        raise choice_error("--run", name, names)
    chosen = [number for number, run in enumerate(planned) if name in (None, run.name)]
    if len(chosen) > 1:
        what = f"run {name!r} has {len(chosen)} seeds" if name else f"the recipe declares {len(planned)} runs"
        raise ConfigError(f"{what}; use `hf-arch run`, or choose one by --run or training.seed: {', '.join(names)}")
    if output_dir is not None and recipe.experiment.match is None:
        return planned[chosen[0]].recipe, Path(output_dir)
    parent = Path("results", recipe.experiment.name) if recipe.experiment.is_set else Path("results")
    ready = prepare_runs(recipe, parent)[chosen[0]]
    return ready.recipe, Path(output_dir) if output_dir is not None else ready.folder


def run_set(recipe: Recipe, results_dir: str | Path, *, workers: int = 1) -> int:
    """`hf-arch run`: trains, compares and reports; prints what it does, and returns the exit code (1: a run failed)."""
    folder = Path(results_dir)
    ready = prepare_runs(recipe, folder)
    tell = partial(print, file=sys.stderr, flush=True)
    for name, matched in {run.name: run.matched for run in ready if run.matched is not None}.items():
        tell(f"{name}: {matched.describe()}")
    failed = run_all(ready, workers=workers, tell=tell)
    completed = [str(run.folder) for run in ready if run not in failed]
    if completed:
        write_suite_results(folder)
        compare_command(completed, None, None, None, False)
        report_command(str(folder), None)
    for run in failed:
        tell(f"failed: {run.folder}: {run.reason}")
    return 1 if failed else 0


def run_all(
    ready: Sequence[ReadyRun], *, workers: int = 1, tell: Callable[[str], None] = lambda line: None
) -> list[ReadyRun]:
    """Trains what is not finished, `workers` runs at a time, and returns the runs that did not complete.

    With one worker a run shows its progress here; with several each writes to `log.txt` in its folder and shares the
    cores fairly.
    """

    def work(run: ReadyRun) -> None:
        if run.status == "completed":
            tell(f"{run.folder.name}: finished already")
            return
        tell(f"{run.folder.name}: {'resumes' if run.status else 'starts'}")
        code = _train_in_process(run, workers)
        tell(f"{run.folder.name}: completed" if code == 0 else f"{run.folder.name}: failed: {run.reason}")

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, ready))
    return [run for run in ready if run.status != "completed"]


def _train_in_process(run: ReadyRun, workers: int) -> int:
    """`hf-arch train` on the run's own recipe in a fresh process; its exit code."""
    config = run.folder / CONFIG_FILE
    write_json_atomic(config, {**run.recipe.to_dict(), "run": {"name": run.name}})
    command = [sys.executable, "-m", "hf_arch", "train", str(config), "--output-dir", str(run.folder), "--resume"]
    if workers == 1:
        return subprocess.run(command, check=False).returncode
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with (run.folder / LOG_FILE).open("a", encoding="utf-8") as log:
        return subprocess.run(command, check=False, stdout=log, stderr=log, env=environment).returncode
