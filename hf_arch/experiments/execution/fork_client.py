"""The runner's side of `fork_server`: which runs are forked, and a forked run as a process of the runner.

A run is forked where that is safe and pays: on Linux, without an accelerator (its driver does not survive a fork), in
one process, in a set of several runs, and unless `HF_ARCH_START_METHOD=spawn`. Everything that holds for a spawned run
holds for a forked one: it is a child of the runner in a session of its own, with its own log, environment and limits.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, BinaryIO

from hf_arch.environment import read
from hf_arch.experiments.execution.fork_server import MESSAGE_BYTES, TITLE_BYTES
from hf_arch.experiments.execution.process import CHILD, Handle, Start, spawn

START_SECONDS = 300.0
LOOK_SECONDS = 0.2
STOP_SECONDS = 5.0
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37  # linux/prctl.h


class NotForked(Exception):
    """Why a run could not be forked; it is spawned."""


class ForkedRun:
    """A forked child of this process with the part of `subprocess.Popen` that `Process` uses."""

    def __init__(self, pid: int, stdin: IO[bytes]) -> None:
        self.pid, self.stdin = pid, stdin
        self.returncode: int | None = None
        try:
            self._look()
        except ChildProcessError:  # the system has given the orphan to another process
            os.killpg(pid, signal.SIGKILL)
            stdin.close()
            raise NotForked("this system does not let a process adopt orphans") from None

    def poll(self) -> int | None:
        """The exit code; minus the signal that ended it; None while it runs."""
        if self.returncode is None:
            self._look()
            if self.returncode is not None:
                self._forget_group()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it has ended. Raises `subprocess.TimeoutExpired`."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired(f"run {self.pid}", timeout or 0.0)
            time.sleep(0.02)
        return code

    def _look(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)

    def _forget_group(self) -> None:
        """Clears away processes of the run that have ended after it and were given to this process."""
        with suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                continue


class ForkServer:
    """A server for runs in one environment; starts at once, and is ready when its imports are done."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        number = theirs.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", CHILD, "serve", str(number), " " * TITLE_BYTES],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=environment,
            pass_fds=[number],
            start_new_session=True,
        )
        theirs.close()
        self._channel.settimeout(LOOK_SECONDS)
        self._lock = threading.Lock()
        self._ready = False

    def fork(self, command: Sequence[str], output: BinaryIO, stopping: threading.Event) -> ForkedRun:
        """A run of `command`, one of `train_command`. Raises `NotForked`."""
        with self._lock:
            self._wait_until_ready(stopping)
            ours, theirs = os.pipe()[::-1]
            request = {"arguments": command[3:], "shown": command[1:], "folder": os.getcwd()}
            try:
                socket.send_fds(self._channel, [json.dumps(request).encode()], [theirs, output.fileno()])
                answer = self._receive(time.monotonic() + START_SECONDS)
                if "pid" not in answer:
                    raise NotForked(answer["error"])
            except OSError:
                os.close(ours)
                raise NotForked(self._describe_end()) from None
            except BaseException:  # a refusal, or an interrupt
                os.close(ours)
                raise
            finally:
                os.close(theirs)
        return ForkedRun(answer["pid"], os.fdopen(ours, "wb"))

    def close(self) -> None:
        """Ends the server; its runs go on."""
        self._channel.close()
        try:
            self._process.wait(STOP_SECONDS if self._ready else 0.0)
        except subprocess.TimeoutExpired:  # in the midst of its imports
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _wait_until_ready(self, stopping: threading.Event) -> None:
        if self._ready:
            return
        lost = self._receive(time.monotonic() + START_SECONDS, stopping)["lost"]
        if lost:
            raise NotForked(f"a fork would lose the threads {', '.join(lost)}")
        self._ready = True

    def _receive(self, end: float, stopping: threading.Event | None = None) -> dict[str, Any]:
        while time.monotonic() < end and not (stopping is not None and stopping.is_set()):
            try:
                message = self._channel.recv(MESSAGE_BYTES)
            except TimeoutError:
                continue
            except OSError:
                message = b""
            if not message:
                raise NotForked(self._describe_end())
            return json.loads(message)
        raise NotForked("the set is being stopped" if stopping is not None and stopping.is_set() else "no answer")

    def _describe_end(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode("utf-8", errors="replace").splitlines()
        return f"the server has ended{': ' + lines[-1] if lines else ''}"


@contextmanager
def run_starter(runs: int, stopping: threading.Event) -> Iterator[Start]:
    """What starts the runs of a set of so many: by a fork where that is safe and pays, else by `spawn`."""
    if not pays_and_is_safe(runs):
        yield spawn
        return
    with _adopts_orphans() as adopts:
        starter = _ForkingStarter(stopping)
        try:
            yield starter if adopts else spawn
        finally:
            starter.close()


def pays_and_is_safe(runs: int) -> bool:
    """Whether runs are forked at all. Raises `ConfigError` for a value of HF_ARCH_START_METHOD that is none."""
    if read("HF_ARCH_START_METHOD") == "spawn" or sys.platform != "linux" or runs < 2:
        return False
    import torch

    return not torch.accelerator.is_available()


class _ForkingStarter:
    """A `Start` with one server for each environment, for runs of which it can tell what they import."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._servers: dict[frozenset[tuple[str, str]], ForkServer] = {}
        self._lock = threading.Lock()
        self._refused = False

    def __call__(self, command: Sequence[str], output: BinaryIO, environment: Mapping[str, str]) -> Handle:
        if self._refused or list(command[:3]) != [sys.executable, "-m", CHILD]:
            return spawn(command, output, environment)
        try:
            return self._server(environment).fork(command, output, self._stopping)
        except NotForked as error:
            with self._lock:
                if not (self._refused or self._stopping.is_set()):
                    logging.getLogger("hf_arch").warning("runs are spawned, not forked: %s", error)
                self._refused = True
            return spawn(command, output, environment)

    def _server(self, environment: Mapping[str, str]) -> ForkServer:
        key = frozenset(environment.items())
        with self._lock:
            if key not in self._servers:
                self._servers[key] = ForkServer(environment)
            return self._servers[key]

    def close(self) -> None:
        for server in self._servers.values():
            server.close()


@contextmanager
def _adopts_orphans() -> Iterator[bool]:
    """Inside it orphaned descendants of this process become its children, where the system can do that."""
    prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    before = ctypes.c_int()
    if prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0) or prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        yield False
        return
    try:
        yield True
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)
