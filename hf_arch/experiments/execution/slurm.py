"""`hf-arch run --engine slurm`: one job a run, through submitit; the results folder must be shared with the nodes.

A job is a worker of one run (`hf_arch.experiments.execution.worker`): it takes a lease on the run, trains it in a
process of its own, and tries once more where that fails. A job that is preempted or runs out of time saves a checkpoint
and is queued again; the run resumes from there. A job that is cancelled or lost with its node fails its run and no
other; one that was not cancelled is submitted once more.

    hf-arch run RECIPE --engine slurm --slurm slurm_partition=gpu --slurm gpus_per_node=1 --slurm timeout_min=240

The parameters are those of `submitit.AutoExecutor`; `cluster=local` runs the jobs on this machine, to try it out.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.experiments.execution.process import TAIL_LINES
from hf_arch.experiments.execution.worker import Event, Suite, WorkerOptions
from hf_arch.experiments.planning.prepare import ReadyRun
from hf_arch.recipe.yaml_text import parse_override
from hf_arch.runs.record import write_end

JOBS_DIR = ".slurm"
DEFAULTS: dict[str, Any] = {"timeout_min": 240, "cpus_per_task": 4}
POLL_SECONDS = 1.0
ASK_SECONDS = 10.0  # how often the queue is asked about a job that has left no result
SUBMISSIONS = 2
CHECKPOINT_SECONDS = 45.0


class RunJob:
    """What a job calls: trains one run, and saves a checkpoint when the cluster takes its node back."""

    def __init__(self, run: ReadyRun, results_dir: Path, options: WorkerOptions) -> None:
        self.run, self.results_dir, self.options = run, results_dir, options
        self.suite: Suite | None = None

    def __call__(self) -> str | None:
        """The status that the run ended with."""
        self.suite = Suite([self.run], self.results_dir, self.options)
        self.suite.work()
        return self.run.status

    def checkpoint(self) -> Any:
        """Called by submitit in its signal handler, before it queues the job again."""
        from submitit.helpers import DelayedSubmission

        if self.suite is not None:
            # The handler runs in the thread that waits for the suite; a worker thread saves the checkpoint meanwhile.
            self.suite.stopping.set()
            end = time.monotonic() + CHECKPOINT_SECONDS
            while self.run.status == "running" and time.monotonic() < end:
                time.sleep(0.1)
        return DelayedSubmission(RunJob(self.run, self.results_dir, self.options))


@dataclass
class _Submitted:
    """A job with how often its run was submitted, and when the queue was last asked about it."""

    job: Any
    times: int = 1
    asked: float = 0.0


def slurm_parameters(texts: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as parameters for submitit, over the defaults; `cluster` among them."""
    parsed = dict(parse_override(text) for text in texts)
    if (cluster := parsed.setdefault("cluster", "slurm")) not in ("slurm", "local"):
        raise ConfigError(f"--slurm: cluster {cluster!r} is not known; allowed: slurm, local")
    return {**DEFAULTS, **parsed}


def run_on_slurm(
    runs: Sequence[ReadyRun],
    results_dir: Path,
    parameters: dict[str, Any],
    at_once: int | None = None,
    report: Event = lambda _run, _what: None,
    options: WorkerOptions | None = None,
) -> list[ReadyRun]:
    """Submits what is not finished, `at_once` jobs at a time (None: as many as the cluster gives), waits for all of it,
    and returns the runs that did not complete. Ctrl-C cancels the jobs. `options` are those of the worker in each job.

    Raises `ConfigError` where submitit is missing or refuses a parameter.
    """
    engine = _Engine(results_dir.resolve(), parameters, at_once, report, options or WorkerOptions())
    engine.submit([run for run in runs if run.status != "completed"])
    try:
        while engine.jobs:
            engine.look()
            time.sleep(POLL_SECONDS)
    except BaseException:
        engine.cancel()
        raise
    return [run for run in runs if run.status != "completed"]


class _Engine:
    """The jobs that are under way."""

    def __init__(
        self, results_dir: Path, parameters: dict[str, Any], at_once: int | None, report: Event, options: WorkerOptions
    ) -> None:
        self.results_dir, self.report, self.options = results_dir, report, options
        self.cluster = parameters["cluster"]
        self.executor = _executor(results_dir, parameters, at_once)
        self.jobs: dict[Path, tuple[ReadyRun, _Submitted]] = {}

    def submit(self, runs: Sequence[ReadyRun], times: int = 1) -> None:
        """One array of jobs."""
        if not runs:
            return
        with self.executor.batch():
            jobs = [self.executor.submit(RunJob(_absolute(run), self.results_dir, self.options)) for run in runs]
        for run, job in zip(runs, jobs, strict=True):
            self.jobs[run.folder] = (run, _Submitted(job, times))
            self.report(run, f"submitted as job {job.job_id}")

    def look(self) -> None:
        """Takes out what has ended; submits again what was lost."""
        lost = []
        for run, submitted in list(self.jobs.values()):
            if run.status != "completed" and not self._ended(submitted):
                continue
            del self.jobs[run.folder]
            if run.status in ("running", "interrupted", None):  # the job ended before its run did
                state = self._state(submitted.job)
                _write_lost(run, f"job {submitted.job.job_id} ended: {state}", submitted.job)
                if submitted.times < SUBMISSIONS and not state.startswith("CANCELLED"):
                    lost.append(run)
                    continue
            self.report(run, "completed" if run.status == "completed" else f"failed: {run.reason}")
        self.submit(lost, times=SUBMISSIONS)

    def _ended(self, submitted: _Submitted) -> bool:
        if submitted.job.done():
            return True
        if self.cluster != "slurm" or time.monotonic() - submitted.asked < ASK_SECONDS:
            return False
        submitted.asked = time.monotonic()
        return not _is_queued(submitted.job.job_id)

    def _state(self, job: Any) -> str:
        """How the job ended, asked for now: submitit's own answer may be old, and unknown where accounting is off."""
        if self.cluster != "slurm":
            return str(job.state)
        return job_state(job.job_id) or str(job.get_info(mode="force").get("State", "UNKNOWN"))

    def cancel(self) -> None:
        """Takes every job back."""
        for _run, submitted in self.jobs.values():
            submitted.job.cancel()


def _executor(results_dir: Path, parameters: dict[str, Any], at_once: int | None) -> Any:
    try:
        import submitit
    except ImportError:
        raise ConfigError("--engine: 'slurm' needs submitit; install it by: pip install 'hf-arch[slurm]'") from None
    # A folder of its own for each start: job numbers come again, and an old result must not be read as a new one.
    folder = results_dir / JOBS_DIR / f"{time.time_ns():x}" / "%j"
    wanted = {key: value for key, value in parameters.items() if key != "cluster"}
    if at_once is not None and parameters["cluster"] == "slurm":
        wanted["slurm_array_parallelism"] = at_once
    try:
        executor = submitit.AutoExecutor(folder, cluster=parameters["cluster"])
        executor.update_parameters(**wanted)
    except (NameError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--slurm: {' '.join(str(error).split())}") from error
    return executor


def _absolute(run: ReadyRun) -> ReadyRun:
    return replace(run, folder=run.folder.resolve(), config=dict(run.config))


def _is_queued(job_id: str) -> bool:
    """Whether Slurm still lists the job; where accounting is off, that is how a cancelled one is noticed."""
    try:
        done = subprocess.run(["squeue", "-h", "-j", job_id, "-o", "%i"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # the controller is away; ask again later
        return True
    if done.returncode != 0:
        return "Invalid job id" not in done.stderr
    return bool(done.stdout.strip())


def job_state(job_id: str) -> str | None:
    """The state of a job that the controller remembers, as it does for minutes after the end; None for others."""
    try:
        done = subprocess.run(["scontrol", "-o", "show", "job", job_id], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bJobState=(\S+)", done.stdout)
    return found[1] if found else None


def _write_lost(run: ReadyRun, reason: str, job: Any) -> None:
    """Sets a run whose job is gone to failed, with the end of what the job wrote."""
    tail = (job.stderr() or "").splitlines()[-TAIL_LINES:]
    write_end(run.folder, run.name, "failed", reason, error="\n".join(tail))
