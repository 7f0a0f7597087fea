"""How threads wait and how many there are, decided before torch is loaded; what the user sets wins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_arch.core import threads

ROOT = Path(__file__).parents[2]
NAMES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
CODE = """
import json, os, sys
from hf_arch.core import threads
threads.is_busy = lambda: {busy}
threads.usable_cores = lambda: {cores}
{before}
threads.prepare_threads()
print(json.dumps({{name: os.environ[name] for name in {names} if name in os.environ}}))
"""


def prepared(busy: bool, cores: int, before: str = "", **environment: str) -> dict[str, str]:
    """The variables after `prepare_threads` in a process of its own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    code = CODE.format(busy=busy, cores=cores, before=before, names=NAMES)
    env = {**plain, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(done.stdout)


MANY = os.cpu_count() or 1


def test_a_busy_machine_lets_waiting_threads_sleep_and_an_idle_one_spin_shortly() -> None:
    assert prepared(True, MANY) == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert prepared(False, MANY) == {"GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_sets_wins(name: str) -> None:
    given = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "7"}[name]
    assert prepared(True, MANY, **{name: given, "OMP_NUM_THREADS": "3"}) == {name: given, "OMP_NUM_THREADS": "3"}
    assert prepared(True, MANY, KMP_BLOCKTIME="0") == {}


@pytest.mark.skipif(MANY < 2, reason="one core")
def test_a_container_that_allows_fewer_cores_gets_as_many_threads() -> None:
    assert prepared(True, MANY - 1)["OMP_NUM_THREADS"] == str(MANY - 1)


def test_it_is_too_late_once_torch_is_loaded() -> None:
    assert prepared(True, MANY, before="sys.modules['torch'] = sys") == {}


def test_commands_that_train_decide_before_they_load_torch() -> None:
    """In a process that starts like `hf-arch train`, the decision stands in the environment when torch is imported."""
    code = """
import sys, importlib.abc
from hf_arch.core import threads
threads.is_busy = lambda: True
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            import os
            print("torch with", os.environ.get("OMP_WAIT_POLICY"))
            sys.exit(0)
sys.meta_path.insert(0, Watch())
sys.argv = ["hf-arch", *{arguments!r}]
from hf_arch.cli import main
main()
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    for arguments in (["train", "quickstart", "--run", "gla"], ["bench", "llama"]):
        text = code.format(arguments=arguments)
        done = subprocess.run(
            [sys.executable, "-c", text],
            env={**plain, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "torch with PASSIVE" in done.stdout + done.stderr, done.stderr


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_control_groups_share_is_read(tmp_path: Path, files: dict[str, str], granted: float | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert threads._granted(tmp_path) == granted


def test_a_share_of_a_core_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for granted, cores in ((0.3, 1), (1.0, 1)):
        monkeypatch.setattr(threads, "_granted", lambda granted=granted: granted)
        assert threads.usable_cores() == cores


def test_busy_is_what_others_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LOOK_SECONDS", 0.0)
    for spent, busy in ((0, False), (1, False), (50, True)):
        ticks = iter([(1000, 5000), (1000 + spent, 5100)])
        monkeypatch.setattr(threads, "_busy_and_all", lambda ticks=ticks: next(ticks))
        assert threads.is_busy() is busy
    monkeypatch.setattr(threads, "_busy_and_all", lambda: None)
    assert threads.is_busy(load=50.0 * MANY) and not threads.is_busy(load=0.0)
