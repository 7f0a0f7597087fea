"""The Slurm engine, on submitit's local executor: a job a run, failures named, lost jobs survived."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.experiments.execution.runner import RunOptions
from hf_arch.experiments.execution.slurm import RunJob, run_on_slurm, slurm_parameters
from hf_arch.experiments.execution.worker import WorkerOptions
from hf_arch.experiments.planning.prepare import ReadyRun

pytest.importorskip("submitit")

STAND_IN = str(Path(__file__).with_name("stand_in.py"))
PARAMETERS = slurm_parameters(["cluster=local", "timeout_min=5"])


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def options() -> WorkerOptions:
    stand_in, python = STAND_IN, sys.executable  # the job has no test modules to look them up in

    def command(config: Path, folder: Path) -> list[str]:
        return [python, stand_in, str(config), str(folder)]

    command.__module__ = "__main__"  # pickled by value
    return WorkerOptions(command=command)


def ready(root: Path, name: str, **run: Any) -> ReadyRun:
    return ReadyRun(name, root / f"{name}_00", {"run": {"name": name, **run}})


def starts(run: ReadyRun) -> int:
    return len((run.folder / "starts.txt").read_text().splitlines())


def test_every_run_is_a_job_and_a_failure_is_named(tmp_path: Path) -> None:
    runs = [ready(tmp_path, "good"), ready(tmp_path, "broken", does="raise"), ready(tmp_path, "other")]
    said: list[str] = []
    failed = run_on_slurm(
        runs, tmp_path, PARAMETERS, None, lambda run, what: said.append(f"{run.name} {what}"), options()
    )
    assert failed == [runs[1]]
    assert runs[1].reason == "RuntimeError: the mixer is broken"
    assert [starts(run) for run in runs] == [1, 2, 1]
    assert any(line.startswith("good submitted as job ") for line in said) and "good completed" in said
    assert run_on_slurm(runs[::2], tmp_path, PARAMETERS, options=options()) == []
    assert [starts(run) for run in runs] == [1, 2, 1]


def test_a_job_that_dies_with_its_node_is_submitted_once_more(tmp_path: Path) -> None:
    run = ready(tmp_path, "long", steps=10, holds=1)
    killed = threading.Thread(target=kill_first_job, args=(run,))
    killed.start()
    assert run_on_slurm([run], tmp_path, PARAMETERS, options=options()) == []
    killed.join()
    assert run.record.steps == 10 and starts(run) == 2


def kill_first_job(run: ReadyRun) -> None:
    """Kills the worker that holds the run, as a lost node would."""
    import json

    while not (run.folder / "step").exists():
        time.sleep(0.05)
    claim = run.folder.parent / ".claims" / f"{run.folder.name}.1"
    os.kill(json.loads(claim.read_text())["pid"], signal.SIGKILL)


def test_a_preempted_job_puts_its_run_away(tmp_path: Path) -> None:
    run = ready(tmp_path, "long", steps=30, holds=1)
    job = RunJob(run, tmp_path, options())
    thread = threading.Thread(target=job)
    thread.start()
    while not (run.folder / "step").exists():
        time.sleep(0.05)
    queued_again = job.checkpoint()
    assert run.status == "interrupted"
    thread.join(60)
    assert int((run.folder / "step").read_text()) == 1
    assert isinstance(queued_again.function, RunJob) and queued_again.function.run == run


def test_wrong_parameters_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--slurm: cluster 'slum'"):
        slurm_parameters(["cluster=slum"])
    with pytest.raises(ConfigError, match="--slurm: "):
        run_on_slurm([], tmp_path, slurm_parameters(["cluster=local", "partitoin=gpu"]))
    with pytest.raises(ConfigError, match="is for --engine slurm"):
        RunOptions(slurm=("timeout_min=5",))
