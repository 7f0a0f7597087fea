"""How the runs of a prepared set are trained: the options, the engines, the share of the machine that each run gets.

An interrupted run goes on from its last checkpoint, a failed one is tried again. Started twice, or on several machines
with one results folder, the runs are shared out: `hf_arch.experiments.execution.worker`.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.core.threads import usable_cores
from hf_arch.environment import read
from hf_arch.experiments.execution.process import train_command
from hf_arch.experiments.execution.progress import Progress
from hf_arch.experiments.execution.worker import Suite, WorkerOptions
from hf_arch.experiments.planning.prepare import PreparedSet, ReadyRun

ENGINES = ("local", "slurm")


@dataclass(frozen=True)
class RunOptions:
    """How a set is run: `workers` runs at a time, by the `engine`; `distributed` as `hf-arch run` explains it,
    `slurm` parameters of the jobs as `key=value`.
    """

    workers: int = 1
    engine: str = "local"
    distributed: str = "auto"
    slurm: tuple[str, ...] = ()

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
class TrainedSet:
    """A prepared set whose runs have been tried, and those of them that did not complete."""

    prepared: PreparedSet
    failed: list[ReadyRun]


def train_set(prepared: PreparedSet, results_dir: Path, options: RunOptions) -> list[ReadyRun]:
    """Trains what is not finished by the engine of the options; returns the runs that did not complete."""
    for name, matched in {run.name: run.matched for run in prepared.plan.runs if run.matched is not None}.items():
        print(f"{name}: {matched.describe()}", file=sys.stderr, flush=True)
    with _stop_in_order(), Progress(prepared.runs, prepared.plan.skipped) as progress:
        for run in prepared.runs:
            if run.status == "completed":
                progress.report(run, "finished already")
        if options.engine == "slurm":
            from hf_arch.experiments.execution.slurm import run_on_slurm, slurm_parameters

            at_once = options.workers if options.workers > 1 else None
            failed = run_on_slurm(
                prepared.runs,
                results_dir,
                slurm_parameters(options.slurm),
                at_once,
                progress.report,
                job_options(options),
            )
        else:
            failed = Suite(prepared.runs, results_dir, worker_options(options), progress.report).work()
    return failed


def worker_options(options: RunOptions) -> WorkerOptions:
    """Each worker with its share of the cores and of the GPUs."""
    gpus, processes = visible_gpus(), processes_per_run(options)
    threads = max(1, usable_cores() // (options.workers * processes))

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


def visible_gpus() -> list[str]:
    """Names of the GPUs as CUDA_VISIBLE_DEVICES takes them; none on a machine without."""
    named = read("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def _stop_in_order() -> Iterator[None]:
    """A polite end (SIGTERM, as a cluster or `kill` sends it) stops like Ctrl-C; either says how to continue."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if in_main else None
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: run the same command to continue from the last checkpoints", file=sys.stderr, flush=True)
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
