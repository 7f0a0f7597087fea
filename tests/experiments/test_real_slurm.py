"""The Slurm engine on a real cluster of one node: arrays, failure, cancel, and preemption with requeue."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_arch.experiments.execution.slurm import run_on_slurm, slurm_parameters
from hf_arch.experiments.planning.prepare import ReadyRun
from tests.experiments.mini_slurm import AVAILABLE, cluster
from tests.experiments.test_slurm import options, ready, starts

pytest.importorskip("submitit")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not AVAILABLE, reason="needs Slurm: apt-get install --no-install-recommends slurm-wlm"),
]
PARAMETERS = slurm_parameters(["timeout_min=60", "mem_gb=0.5", "cpus_per_task=1", "slurm_partition=debug"])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cluster(tmp_path_factory.mktemp("slurm")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment, "PYTHONPATH": str(Path(__file__).parents[2])}.items():
            patch.setenv(name, value)
        yield


def while_running(run: ReadyRun, told: list[str], *command: str) -> threading.Thread:
    """Runs `command JOB` once the run has made a step."""

    def wait_and_act() -> None:
        while not (run.folder / "step").exists():
            time.sleep(0.1)
        (job,) = (line.rsplit(" ", 1)[1] for line in told if line.startswith(f"{run.name} submitted as job "))
        subprocess.run([*command, job], check=True, timeout=30)

    thread = threading.Thread(target=wait_and_act, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("slurm")
def test_an_array_of_runs_with_a_failure_and_a_second_start(tmp_path: Path) -> None:
    runs = [ready(tmp_path, "good"), ready(tmp_path, "broken", does="raise"), ready(tmp_path, "other")]
    told: list[str] = []
    failed = run_on_slurm(
        runs, tmp_path, PARAMETERS, None, lambda run, what: told.append(f"{run.name} {what}"), options()
    )
    assert failed == [runs[1]] and runs[1].reason == "RuntimeError: the mixer is broken"
    jobs = [line.rsplit(" ", 1)[1] for line in told if "submitted as job" in line]
    assert [job.split("_")[1] for job in jobs] == ["0", "1", "2"] and len({job.split("_")[0] for job in jobs}) == 1
    assert [starts(run) for run in runs] == [1, 2, 1]
    assert run_on_slurm(runs[::2], tmp_path, PARAMETERS, options=options()) == []
    assert [starts(run) for run in runs] == [1, 2, 1]


@pytest.mark.usefixtures("slurm")
def test_a_cancelled_job_fails_its_run_alone(tmp_path: Path) -> None:
    runs = [ready(tmp_path, "long", steps=300, seconds=0.2), ready(tmp_path, "other")]
    told: list[str] = []
    thread = while_running(runs[0], told, "scancel")
    failed = run_on_slurm(
        runs, tmp_path, PARAMETERS, None, lambda run, what: told.append(f"{run.name} {what}"), options()
    )
    thread.join()
    assert failed == [runs[0]]
    assert runs[0].status == "failed" and "CANCELLED" in runs[0].reason and runs[1].status == "completed"
    assert sum(line.startswith("long submitted as job ") for line in told) == 1


@pytest.mark.usefixtures("slurm")
def test_a_preempted_job_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    run = ready(tmp_path, "long", steps=25, seconds=0.3)
    told: list[str] = []
    thread = while_running(run, told, "scancel", "--signal=USR2")
    assert (
        run_on_slurm([run], tmp_path, PARAMETERS, None, lambda run, what: told.append(f"{run.name} {what}"), options())
        == []
    )
    thread.join()
    assert run.record.steps == 25 and starts(run) == 2
    assert sum("submitted as job" in line for line in told) == 1  # Slurm queued the same job again
