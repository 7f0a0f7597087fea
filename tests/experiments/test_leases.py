"""Claims: one worker has a run, whoever asks and whenever; a dead or silent owner loses it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hf_arch.experiments.execution.leases import Leases

HOLD = """
import sys, time, pathlib
from hf_arch.experiments.execution.leases import Leases
assert Leases(pathlib.Path(sys.argv[1])).take("run") is not None
print("held", flush=True)
time.sleep(60)
"""


def take_each(folder: Path, names: list[str]) -> list[str]:
    """The names that this process got."""
    claims = Leases(folder)
    return [name for name in names if claims.take(name) is not None]


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_a_run_is_had_by_one_until_it_is_given_back(tmp_path: Path) -> None:
    claims = Leases(tmp_path / "claims")
    first = claims.take("run")
    assert first is not None and claims.held("run")
    assert claims.take("run") is None
    assert claims.take("run.1") is not None  # another run, whatever its name
    first.release()
    assert not claims.held("run")
    assert claims.take("run") is not None


def test_a_silent_owner_on_another_machine_loses_its_run_after_the_lease(tmp_path: Path) -> None:
    claims = Leases(tmp_path)
    path = claims.path("run", 1)
    path.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "started": 0.0}))
    age(path, 50)
    assert claims.take("run") is None
    age(path, 11)
    assert claims.take("run") is not None
    assert claims.take("run") is None


def test_a_claim_is_kept_alive_and_knows_when_it_is_lost(tmp_path: Path) -> None:
    claims = Leases(tmp_path, seconds=2.0)
    claim = claims.take("run")
    assert claim is not None
    lapsed = claims.path("run", 1).stat().st_mtime - 50
    os.utime(claims.path("run", 1), (lapsed, lapsed))
    end = time.monotonic() + 60
    while claims.path("run", 1).stat().st_mtime == lapsed:  # until its owner touches it
        assert time.monotonic() < end, "the owner of the claim did not touch it"
        time.sleep(0.02)
    assert claims.path("run", 1).stat().st_mtime > lapsed + 50 and not claim.lost.is_set()
    claims.path("run", 2).touch()
    assert claim.lost.wait(60)


def test_a_killed_owner_on_this_machine_loses_its_run_at_once(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "held\n"
    assert Leases(tmp_path).take("run") is None
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert Leases(tmp_path).take("run") is not None


@pytest.mark.parametrize("lapsed", [False, True])
def test_of_many_workers_one_gets_each_run(tmp_path: Path, lapsed: bool) -> None:
    names = [f"run-{number}" for number in range(20)]
    if lapsed:
        for name in names:
            Leases(tmp_path).path(name, 1).touch()
            os.utime(Leases(tmp_path).path(name, 1), (0, 0))
    with ThreadPoolExecutor(8) as pool:
        got = [name for taken in pool.map(lambda _: take_each(tmp_path, names), range(8)) for name in taken]
    assert sorted(got) == sorted(names)


@pytest.mark.slow
def test_of_many_processes_one_gets_each_run(tmp_path: Path) -> None:
    names = [f"run-{number}" for number in range(50)]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        got = [name for taken in pool.starmap(take_each, [(tmp_path, names)] * 4) for name in taken]
    assert sorted(got) == sorted(names)
