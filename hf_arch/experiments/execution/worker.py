"""Workers: take the runs of a set one by one, train each in its own process, until every run of the set is settled.

Any number of workers, in one process or on many machines, share a results folder: a run is trained by the one that
holds its lease. A run is settled when it completed, or failed again after one more try; what another worker is
still training is waited for. A failure harms no other run. Stopping leaves every run so that it can be resumed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from hf_arch.core.files import write_atomic
from hf_arch.experiments.execution.fork_client import run_starter
from hf_arch.experiments.execution.leases import LEASE_SECONDS, Lease, Leases
from hf_arch.experiments.execution.process import LOG_FILE, WRONG_USAGE, Process, Start, spawn, train_command
from hf_arch.experiments.execution.set_precision import leaves_precision_open, with_set_precision
from hf_arch.experiments.planning.prepare import ReadyRun
from hf_arch.runs.files import CONFIG_FILE, RESULTS_FILE
from hf_arch.runs.record import write_end

LEASES_DIR = ".claims"  # as earlier releases call it, whose workers may share the folder
TRIES = 2
POLL_SECONDS = 0.2
WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class WorkerOptions:
    """How runs are trained.

    workers: at a time. lease_seconds: how long a lease lasts that nobody renews.
    command: makes the command line of a run from its config file and folder.
    environment: by the number of the worker, is laid over this process's own.
    """

    workers: int = 1
    lease_seconds: float = LEASE_SECONDS
    command: Callable[[Path, Path], list[str]] = train_command
    environment: Callable[[int], Mapping[str, str]] = lambda _worker: {}


Event = Callable[[ReadyRun, str], None]
"""Called with a run and what happened to it: starts, resumes, completed, failed ..., tried again."""


class Suite:
    """The runs of a set, and the workers of this process that train them."""

    def __init__(
        self,
        runs: Sequence[ReadyRun],
        results_dir: Path,
        options: WorkerOptions | None = None,
        report: Event | None = None,
    ) -> None:
        self.runs = list(runs)
        self.options = options or WorkerOptions()
        self.leases = Leases(results_dir / LEASES_DIR, self.options.lease_seconds)
        self.stopping = threading.Event()
        self._report: Event = report or (lambda _run, _what: None)
        self._choosing = threading.Lock()
        self._failed: set[Path] = set()
        self._started = 0.0
        self._start: Start = spawn

    def work(self) -> list[ReadyRun]:
        """Trains until every run is settled, and returns those that did not complete. Stops in order on Ctrl-C."""
        self.leases.folder.mkdir(parents=True, exist_ok=True)
        self._started = self.leases.now()
        unfinished = sum(run.status != "completed" for run in self.runs)
        with (
            run_starter(unfinished, self.stopping) as self._start,
            ThreadPoolExecutor(self.options.workers, thread_name_prefix="worker") as pool,
        ):
            futures = [pool.submit(self._worker, number) for number in range(self.options.workers)]
            try:
                for future in futures:
                    future.result()
            finally:
                self.stopping.set()  # the pool then waits for workers whose runs are saving a checkpoint
        return [run for run in self.runs if run.status != "completed"]

    def _worker(self, number: int) -> None:
        while (taken := self._next()) is not None:
            run, lease = taken
            with lease:
                self._train(run, lease, self.options.environment(number))

    def _next(self) -> tuple[ReadyRun, Lease] | None:
        """The first unclaimed run, with a lease on it; None where all are settled or the suite stops."""
        while not self.stopping.is_set():
            waiting = False
            with self._choosing:
                for run in self.runs:
                    if run.folder in self._failed or run.status == "completed":
                        continue
                    lease = self.leases.take(run.folder.name)
                    if lease is None:
                        waiting = True
                    elif run.status == "completed":  # meanwhile, by another worker
                        lease.release()
                    elif self._failed_elsewhere(run):
                        self._failed.add(run.folder)
                        lease.release()
                    else:
                        return run, lease
            if not waiting:
                return None
            self.stopping.wait(WAIT_SECONDS)
        return None

    def _failed_elsewhere(self, run: ReadyRun) -> bool:
        """Whether another worker has tried the run to its end since this suite began."""
        return run.status == "failed" and (run.folder / RESULTS_FILE).stat().st_mtime >= self._started

    def _train(self, run: ReadyRun, lease: Lease, environment: Mapping[str, str]) -> None:
        config = run.folder / CONFIG_FILE
        earlier = config.read_text(encoding="utf-8") if config.is_file() else None
        earlier_records = (other.record for other in self.runs if leaves_precision_open(other.config))
        replace(run, config=with_set_precision(run.config, self.leases.folder, earlier_records)).write_config()
        failures = 0
        while True:
            self._report(run, "resumes" if run.status else "starts")
            before = run.written
            process = Process(self.options.command(config, run.folder), run.folder / LOG_FILE, environment, self._start)
            while process.code is None and not (self.stopping.is_set() or lease.lost.is_set()):
                time.sleep(POLL_SECONDS)
            if process.code is None:
                process.stop()
            process.close()
            if lease.lost.is_set():
                self._report(run, "taken over by another worker, after this one was cut off")
                return
            if run.status == "completed":
                self._report(run, "completed")
                return
            if self.stopping.is_set():
                write_end(run.folder, run.name, "interrupted", "interrupted by the user")
                self._report(run, "interrupted")
                return
            if run.status == "interrupted" and run.written != before:  # stopped by somebody else, not by this suite
                self._report(run, run.reason)
                continue
            failures += 1
            if process.code == WRONG_USAGE and earlier is not None:
                write_atomic(config, earlier)  # what is there was not trained with what is asked for now
            write_end(run.folder, run.name, "failed", process.describe_end(), error=process.tail())
            record = run.record
            useless = process.code == WRONG_USAGE or (record is not None and record.retry is False)
            if failures == TRIES or useless:
                break
            self._report(run, f"failed: {run.reason}; tried once more")
        self._failed.add(run.folder)
        self._report(run, f"failed: {run.reason}")
