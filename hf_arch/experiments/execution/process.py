"""One run in its own process: started, stopped so that it can be resumed, and its end put into words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, BinaryIO, Protocol

CHILD = "hf_arch.experiments.execution.child"
LOG_FILE = "log.txt"
WRONG_USAGE = 2  # the exit code of a configuration error, which is not retried
TAIL_LINES = 20
PATIENCE_SECONDS = 20.0


def launcher(processes: int) -> list[str]:
    """The beginning of a command that runs Python in so many processes, several by torch.distributed."""
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def train_command(config: Path, folder: Path, processes: int = 1) -> list[str]:
    """The command that trains the run in `folder`, or goes on with it."""
    return [*launcher(processes), "-m", CHILD, "train", str(folder)]


class Handle(Protocol):
    """A started process, the leader of its group: the part of `subprocess.Popen` that is used here."""

    @property
    def pid(self) -> int:
        """Its number, and that of its group."""

    @property
    def stdin(self) -> IO[bytes] | None:
        """Our end of its standard input."""

    def poll(self) -> int | None:
        """The exit code; minus the signal that ended it; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it has ended. Raises `subprocess.TimeoutExpired`."""


Start = Callable[[Sequence[str], BinaryIO, Mapping[str, str]], Handle]
"""Starts a command with its output and its whole environment."""


def spawn(command: Sequence[str], output: BinaryIO, environment: Mapping[str, str]) -> Handle:
    """A new process that begins with an empty Python."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the runner alone, which then stops its children in order
    )


class Process:
    """A command in a process group of its own, its output appended to `log`. It ends with this process."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        start: Start = spawn,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._process = start(command, output, {**os.environ, **(environment or {})})

    @property
    def code(self) -> int | None:
        """The exit code; minus the signal that ended it; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Interrupts it, which lets a run say so in its results, and kills it where that takes too long."""
        for number, patience in ((signal.SIGINT, PATIENCE_SECONDS), (signal.SIGKILL, None)):
            if self.code is None:
                os.killpg(self._process.pid, number)
            try:
                self._process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        self.close()

    def close(self) -> None:
        """Gives the pipe back."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def tail(self) -> str:
        """The last lines of what it wrote since it was started."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode("utf-8", errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def describe_end(self) -> str:
        """Why it ended: its own last `error: ` line, else the exit code in words."""
        told = next((line for line in reversed(self.tail().splitlines()) if line.startswith("error: ")), None)
        if told is not None:
            return told.removeprefix("error: ")
        code = self.code
        if code is None:
            return "still running"
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = " (if nobody sent it, the system ran out of memory)" if -code == signal.SIGKILL else ""
        return f"killed by {name}{hint}"
