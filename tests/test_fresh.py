"""A program in a fresh process ends, prints and finds its surroundings as one that `python -c` starts."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.fresh import COMMAND, Fresh


@pytest.mark.parametrize(
    ("code", "end", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('gone')", 1, "gone\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_it_ends_as_the_program_says(code: str, end: int, said: str, fresh: Fresh) -> None:
    done = fresh(code)
    assert (done.returncode, done.stderr) == (end, said)


def test_what_it_raises_is_on_stderr(fresh: Fresh) -> None:
    done = fresh("print('before'); 1 / 0")
    assert (done.returncode, done.stdout) == (1, "before\n")
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_nothing_of_this_process_or_of_an_earlier_program_is_there(fresh: Fresh, tmp_path: Path) -> None:
    assert fresh("import hf_arch, os; os.environ['LEFT'] = '1'; os.chdir('/')").returncode == 0
    code = """
import json, os, sys
loaded = sorted({"transformers", "hf_arch", "huggingface_hub", "pytest", "json5"} & {*sys.modules})
print(json.dumps([loaded, sys.argv, os.getcwd(), dict(os.environ), sys.path[:2], sys.stdin.read(), __name__]))
"""
    done = fresh(code, "a", "b", env={"PYTHONPATH": "/there", "OWN": "1"}, cwd=tmp_path)
    *found, environment, path, read, name = json.loads(done.stdout)
    assert found == [[], ["-c", "a", "b"], str(tmp_path)]
    assert environment == {"PYTHONPATH": "/there", "OWN": "1"} and path == ["", "/there"]
    assert (read, name) == ("", "__main__")


def test_the_command_is_that_of_python_m(fresh: Fresh) -> None:
    done = fresh(COMMAND, "trian")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "train" in done.stderr
