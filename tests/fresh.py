"""New processes for the price of a fork: the fixture `fresh` of `tests/conftest.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMAND = "import runpy; runpy.run_module('hf_arch', run_name='__main__', alter_sys=True)"
"""The program of `python -m hf_arch`."""


class Fresh:
    """Runs `python -c code arguments` in a process that has imported torch and what else transformers imports of other
    libraries, but neither transformers nor hf_arch: both are imported there for the first time.

    For whatever rests on torch not being imported, or on what an interpreter does at its beginning or end, start one.
    """

    def __init__(self, server: subprocess.Popen[str]):
        self._server = server

    def __call__(
        self, code: str, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`env` is the whole environment; without it this process's, with the repository on the path."""
        assert self._server.stdin is not None and self._server.stdout is not None
        given = {**os.environ, "PYTHONPATH": str(ROOT)} if env is None else env
        task = {"code": code, "arguments": arguments, "environment": dict(given), "folder": str(cwd or Path.cwd())}
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the process that forks has ended"
        return subprocess.CompletedProcess([code, *arguments], **json.loads(answer))


@contextmanager
def fresh_processes() -> Iterator[Fresh]:
    """A `Fresh`, whose server ends with the block."""
    command = [sys.executable, str(Path(__file__).with_name("fresh_server.py"))]
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    }  # each program has its own
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as server:
        yield Fresh(server)
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(60) == 0
