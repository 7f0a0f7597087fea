"""Forked runs: children of the runner like spawned ones, with the same numbers; spawned where a fork is unsafe."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from hf_arch.core.errors import ConfigError
from hf_arch.experiments.execution import fork_client
from hf_arch.experiments.execution.fork_client import pays_and_is_safe, run_starter
from hf_arch.experiments.execution.process import Process, train_command
from hf_arch.runs.files import CONFIG_FILE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux alone")

ROOT = Path(__file__).parents[2]
PLUGIN = """
import os, time
from hf_arch.core.registry import MIXERS
from hf_arch.layers.mixers.gla import GatedLinearAttention

@MIXERS.register("own")
class Own(GatedLinearAttention):
    def mix(self, x, layout, state, **context):
        time.sleep({seconds})
        return {scale} * super().mix(x, layout, state, **context)
"""
KEPT = ("final_train_loss", "final_val_loss", "bits_per_byte", "tokens_seen", "sample", "order_fingerprint")


def write_run(root: Path, name: str, *, scale: float = 1.0, seconds: float = 0.0, **training: Any) -> Path:
    """The folder of a run whose mixer is a plugin `own.py`, another text in each."""
    folder = root / name
    folder.mkdir(parents=True)
    (root.parent / "text.txt").write_text(" ".join(f"{i % 7} wizards and {i % 11} boxes" for i in range(3000)))
    (folder / "own.py").write_text(PLUGIN.format(scale=scale, seconds=seconds))
    config = {
        "model": {
            "architecture": "gla", "plugins": [str(folder / "own.py")], "mixer": {"type": "own"}, "hidden_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        },
        "data": {"corpus": str(root.parent / "text.txt"), "tokenizer": "char", "sequence_length": 32},
        "training": {
            "max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "eval_steps": 3, "precision": "fp32",
            **training,
        },
        "evaluation": {"sequences": 8, "final_sequences": 8, "speed": False, "new_tokens": 4},
    }  # fmt: skip
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder


def wait(process: Process, seconds: float = 120.0) -> int:
    end = time.monotonic() + seconds
    while (code := process.code) is None:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    process.close()
    return code


def environment() -> dict[str, str]:
    """What pytest changes with every test is in it, so that one server serves them all."""
    given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "HF_ARCH_TEST_WORKERS": "7"}
    return given | {"PYTEST_CURRENT_TEST": ""}


@pytest.fixture(scope="module")
def start() -> Iterator[fork_client.Start]:
    with run_starter(2, threading.Event()) as starter:
        assert isinstance(starter, fork_client._ForkingStarter)
        yield starter
        assert not starter._refused, "the runs of this file were spawned"
        assert len(starter._servers) <= 1, "a server for every test"


def started(folder: Path, start: fork_client.Start = fork_client.spawn) -> Process:
    return Process(train_command(folder / CONFIG_FILE, folder), folder / "log.txt", environment(), start)


def test_a_forked_run_has_the_numbers_of_a_spawned_one_and_plugins_of_its_own(
    tmp_path: Path, start: fork_client.Start
) -> None:
    folders = [write_run(tmp_path / how, "run") for how in ("spawned", "forked")]
    folders.append(write_run(tmp_path / "forked", "tripled", scale=3.0))
    for folder in folders:
        process = started(folder, fork_client.spawn if folder is folders[0] else start)
        assert wait(process) == 0, process.tail()
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    spawned, forked, tripled = ([*map(numbers.get, KEPT)] for numbers in results)
    assert forked == spawned != tripled
    for numbers in results:
        assert numbers["provenance"]["command"].startswith("hf-arch train ")
        assert numbers["provenance"]["threads"] == 2


@pytest.mark.rest
def test_a_forked_run_is_a_child_in_a_session_of_its_own_and_is_stopped_as_one(
    tmp_path: Path, start: fork_client.Start
) -> None:
    folders = [write_run(tmp_path, name, seconds=0.05, max_steps=2000) for name in ("one", "two", "three")]
    processes = [started(folder, start) for folder in folders]
    found = {Path(child.cmdline()[-1]): child for child in psutil.Process().children() if "train" in child.cmdline()}
    try:
        assert set(found) == set(folders)
        for child in found.values():
            assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
            assert child.environ()["HF_ARCH_TEST_WORKERS"] == "7"
        while not all((folder / "metrics.jsonl").is_file() for folder in folders):
            assert all(process.code is None for process in processes), [process.tail() for process in processes]
            time.sleep(0.05)
        found[folders[0]].send_signal(signal.SIGKILL)
        assert wait(processes[0]) == -signal.SIGKILL
        assert "SIGKILL" in processes[0].describe_end()
        processes[1].stop()
        assert processes[1].code == 128 + signal.SIGINT
        assert json.loads((folders[1] / "results.json").read_text())["status"] == "interrupted"
        processes[2].close()  # what the end of the runner does
        assert wait(processes[2]) == 1
    finally:
        for process in processes:
            process.stop()


def test_a_wrong_config_ends_a_forked_run_with_2_in_its_own_log(tmp_path: Path, start: fork_client.Start) -> None:
    folder = write_run(tmp_path, "wrong", learning_rate="fast")
    process = started(folder, start)
    assert wait(process) == 2
    assert "learning_rate" in process.describe_end()
    assert (folder / "log.txt").read_text().startswith("error: ")


def command_line(pid: int) -> list[str]:
    """The arguments of a process, which it does not have yet in the first moment of its program."""
    end = time.monotonic() + 30
    while not (arguments := psutil.Process(pid).cmdline()) and time.monotonic() < end:
        time.sleep(0.001)
    return arguments


def test_a_set_that_is_stopped_while_the_server_imports_does_not_wait_for_it(tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    with run_starter(2, stopping) as starter:
        process = started(write_run(tmp_path, "wrong", learning_rate="fast"), starter)
        assert command_line(process._process.pid)[-1] == str(tmp_path / "wrong")
        process.stop()


THREADS = """
import threading
from hf_arch.experiments.execution.fork_server import lost_threads
{}
print(lost_threads())
"""


@pytest.mark.rest
@pytest.mark.parametrize(
    ("lines", "lost"),
    [
        ("import numpy; a = numpy.ones((400, 400)); a @ a", False),
        ("import torch; torch.set_num_threads(2); a = torch.ones(400, 400); a @ a", True),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", True),
    ],
)
def test_threads_that_a_fork_would_lose_are_seen(lines: str, lost: bool) -> None:
    """numpy's own pool ends before a fork; that of torch does not, nor does a plain thread."""
    program = THREADS.format(lines)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert (done.stdout.strip() != "[]") is lost, done.stdout


def test_runs_are_forked_only_where_that_is_safe_and_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ARCH_START_METHOD", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert pays_and_is_safe(2) and not pays_and_is_safe(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.accelerator, "is_available", lambda: True)
        assert not pays_and_is_safe(2)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert not pays_and_is_safe(2)
    monkeypatch.setenv("HF_ARCH_START_METHOD", "fork")
    assert pays_and_is_safe(2)
    monkeypatch.setenv("HF_ARCH_START_METHOD", "spawn")
    assert not pays_and_is_safe(2)
    monkeypatch.setenv("HF_ARCH_START_METHOD", "spwan")
    with pytest.raises(ConfigError, match=r"HF_ARCH_START_METHOD.*spwan.*spawn"):
        pays_and_is_safe(2)


def test_a_server_for_a_set_takes_no_folder_along(
    tmp_path: Path, start: fork_client.Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative folders are those of the runner when it starts the run, not of the server when it began."""
    write_run(tmp_path / "elsewhere", "wrong", learning_rate="fast")
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        wrong = (tmp_path / "elsewhere" / "wrong").relative_to(folder)
        process = started(wrong, start)
        assert wait(process) == 2
        assert (wrong / "log.txt").read_text().startswith("error: ") and "learning_rate" in process.describe_end()


@pytest.mark.rest
def test_runs_are_spawned_after_the_server_has_gone(
    tmp_path: Path, start: fork_client.Start, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = write_run(tmp_path, "wrong", learning_rate="fast")
    assert wait(started(wrong, start)) == 2
    assert isinstance(start, fork_client._ForkingStarter)
    starter = fork_client._ForkingStarter(threading.Event())
    (server,) = start._servers.values()
    starter._servers, start._servers = start._servers, {}  # what is started after this test gets another
    server._process.kill()
    server._process.wait()
    with caplog.at_level(logging.WARNING, "hf_arch"):
        assert wait(started(wrong, starter)) == 2
    starter.close()
    assert len(caplog.records) == 1 and "spawned, not forked: the server has ended" in caplog.text
