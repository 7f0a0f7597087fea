"""A command that is busy says with what; one that is quick says nothing."""

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_arch.core.waiting import announced, importing


def test_only_what_takes_long_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    with announced("quick", seconds=30):
        pass
    with announced("slow", seconds=0.01):
        time.sleep(0.3)
    with announced("something else", seconds=0.01, when=lambda: False):
        time.sleep(0.3)
    assert capsys.readouterr().err == "slow ...\n"


def test_an_error_ends_the_wait(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), announced("late", seconds=0.2):
        raise ValueError
    time.sleep(0.4)
    assert capsys.readouterr().err == ""


def test_an_import_is_seen_from_another_thread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_slowly.py").write_text("import time; time.sleep(0.5)")
    monkeypatch.syspath_prepend(tmp_path)
    with announced("loading", seconds=0.1, when=importing):
        importlib.import_module("imported_slowly")
    with announced("not loading", seconds=0.1, when=importing):
        time.sleep(0.3)
    assert capsys.readouterr().err == "loading ...\n"


def test_the_command_line_says_that_it_loads(tmp_path: Path) -> None:
    # An import that lasts until the word was said; what comes before it takes a part of the two seconds.
    waits = "import threading; [each.join(60) for each in threading.enumerate() if isinstance(each, threading.Timer)]"
    (tmp_path / "torch.py").write_text(f"{waits}; raise SystemExit(5)")
    program = "import hf_arch.core.waiting as w; w.PATIENCE_SECONDS = 2; from hf_arch.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "info", "llama"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "PATH": ""},
        timeout=60,
    )
    assert done.returncode == 5 and done.stdout == ""
    assert done.stderr == "loading PyTorch and transformers ...\n"
