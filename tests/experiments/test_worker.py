"""Workers: every run once, whoever works; failures stay with their run; whatever is cut off goes on later."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from hf_arch.experiments.execution.worker import Suite, WorkerOptions
from hf_arch.experiments.planning.prepare import ReadyRun
from tests.signals import hear_interrupts

STAND_IN = Path(__file__).with_name("stand_in.py")
OPTIONS = WorkerOptions(command=lambda config, folder: [sys.executable, str(STAND_IN), str(config), str(folder)])


def ready(root: Path, name: str, **run: Any) -> ReadyRun:
    return ReadyRun(name, root / f"{name}_00", {"run": {"name": name, **run}})


def starts(run: ReadyRun) -> int:
    return len((run.folder / "starts.txt").read_text().splitlines())


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_set_is_trained_once_and_kept(tmp_path: Path) -> None:
    runs = [ready(tmp_path, name) for name in ("a", "b", "c")]
    said: list[str] = []
    assert Suite(runs, tmp_path, OPTIONS, lambda run, what: said.append(f"{run.name} {what}")).work() == []
    assert said == [f"{name} {what}" for name in "abc" for what in ("starts", "completed")]
    assert Suite(runs, tmp_path, OPTIONS).work() == []
    assert [starts(run) for run in runs] == [1, 1, 1]


def test_a_failure_is_tried_once_more_told_and_harms_no_other(tmp_path: Path) -> None:
    does = {"broken": "raise", "lucky": "raise once", "wrong": "usage", "nan": "nan", "killed": "killed", "good": ""}
    runs = {name: ready(tmp_path, name, does=what) for name, what in does.items()}
    failed = Suite(list(runs.values()), tmp_path, OPTIONS).work()
    assert [run.name for run in failed] == ["broken", "wrong", "nan", "killed"]
    assert {name: starts(run) for name, run in runs.items()} == {
        "broken": 2, "lucky": 2, "wrong": 1, "nan": 1, "killed": 2, "good": 1,
    }  # fmt: skip
    assert runs["broken"].reason == "RuntimeError: the mixer is broken"
    assert "the mixer is broken" in runs["broken"].record.error
    assert runs["wrong"].reason == "model.hidden_size: is wrong"
    assert "nan by step 3" in runs["nan"].reason
    assert "SIGKILL" in runs["killed"].reason and "out of memory" in runs["killed"].reason
    assert {run.status for run in failed} == {"failed"}
    assert Suite([runs["broken"]], tmp_path, OPTIONS).work() == [runs["broken"]]
    assert starts(runs["broken"]) == 4  # started again by a person, it is tried again


def test_two_suites_share_a_folder_and_every_run_comes_once(tmp_path: Path) -> None:
    runs = [ready(tmp_path, f"run{number}", seconds=0.05) for number in range(6)]
    suites = [Suite(runs, tmp_path, WorkerOptions(workers=2, command=OPTIONS.command)) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda suite: suite.work(), suites)) == [[], []]
    assert [starts(run) for run in runs] == [1] * 6


def test_a_failure_in_one_suite_is_not_repeated_by_the_other(tmp_path: Path) -> None:
    runs = [ready(tmp_path, "broken", does="raise", seconds=0.5), ready(tmp_path, "long", seconds=3.0)]
    suites = [Suite(runs, tmp_path, OPTIONS) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda suite: suite.work(), suites)) == [[runs[0]], [runs[0]]]
    assert [starts(run) for run in runs] == [2, 1]


def test_what_is_stopped_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    run = ready(tmp_path, "long", steps=8, holds=2)
    suite = Suite([run], tmp_path, OPTIONS)
    thread = threading.Thread(target=suite.work)
    thread.start()
    wait_for(lambda: (run.folder / "step").exists())
    suite.stopping.set()
    thread.join(120)
    assert run.status == "interrupted"
    assert int((run.folder / "step").read_text()) in (1, 2)
    assert Suite([run], tmp_path, OPTIONS).work() == []
    assert run.record.steps == 8 and starts(run) == 2


def work_on(root: Path) -> None:
    hear_interrupts()
    Suite([ready(root, "long", steps=20, holds=1), ready(root, "next")], root, OPTIONS).work()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_runner_that_ends_takes_its_run_along_and_another_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    runner = multiprocessing.get_context("fork").Process(target=work_on, args=(tmp_path,))
    runner.start()
    runs = [ready(tmp_path, "long", steps=20, holds=1), ready(tmp_path, "next")]
    step = runs[0].folder / "step"
    wait_for(step.exists)
    children = psutil.Process(runner.pid).children(recursive=True)
    os.kill(runner.pid, number)
    runner.join(60)
    assert runner.exitcode
    assert children and not psutil.wait_procs(children, timeout=60)[1]  # nobody trains on behind the runner's back
    assert int(step.read_text()) == 1
    assert Suite(runs, tmp_path, OPTIONS).work() == []
    assert [starts(run) for run in runs] == [2, 1]
