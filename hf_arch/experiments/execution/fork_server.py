"""A process that has imported everything once and forks into the runs of a set, which then start within milliseconds.

Only `child` calls `serve`. The runner sends a request for each run over a socket, with the run's standard input and its
log as file descriptors. The server forks twice, so that the kernel gives the run to the runner, its nearest ancestor
that adopts orphans (`fork_client`): the runner waits for it and kills it as it does with a process that it has spawned,
and the server's end harms no run.

Nothing runs in the server but imports. OpenMP's threads start with the first parallel region and do not survive a fork,
so no tensor is computed here, no plugin is loaded, and where a thread is there that a fork would lose the server says
so and ends: runs are spawned then.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_arch.core.collector import without_collection
from hf_arch.core.registry import import_all_entries

MODULES = (
    *("hf_arch.api", "hf_arch.training.run"),
    *("transformers.models.auto.tokenization_auto", "transformers.models.encoder_decoder", "rich._emoji_codes"),
)
"""What a run imports besides the parts that its recipe names, and what a first run was seen to import late."""
SAFE_THREADS = ("jemalloc_bg_thd",)
"""Threads that survive a fork: pyarrow's allocator takes its locks before one and starts its thread anew after it."""
MESSAGE_BYTES = 65536
TITLE_BYTES = 2048
"""Room for the command line of a run in the memory of the server's, which is that long for it."""
_ARG_START, _ARG_END = 45, 46  # of /proc/self/stat, counted after the command's name


def serve(control: int) -> list[str]:
    """Forks runs until the runner closes its end of the socket `control`, then ends this process. It returns in each
    run alone, with the arguments that the runner has sent for it."""
    channel = socket.socket(fileno=control)
    with without_collection():
        for module in MODULES:
            import_module(module)
        import_all_entries()
    threads = lost_threads()
    _send(channel, {"lost": threads})
    if threads:
        sys.exit(1)
    gc.collect()
    gc.freeze()  # runs need not look through what lives for ever, nor copy its pages
    while True:
        message, descriptors, _flags, _address = socket.recv_fds(channel, MESSAGE_BYTES, 2)
        if not message:
            sys.exit(0)
        request = json.loads(message)
        if fork_orphan(channel):
            _become_run(channel, descriptors, request)
            return request["arguments"]
        for descriptor in descriptors:
            os.close(descriptor)


def fork_orphan(channel: socket.socket) -> bool:
    """Forks a process whose parent has ended, in a session of its own, and sends its number; true in that process."""
    reader, writer = os.pipe()
    try:
        between = os.fork()
        if between == 0:
            _fork_and_leave()
            os.setsid()
            os.write(writer, str(os.getpid()).encode())
            os.close(reader)
            os.close(writer)
            return True
        os.close(writer)
        writer = -1
        os.waitpid(between, 0)
        number = os.read(reader, 32)  # nothing where the second fork has failed
        _send(channel, {"pid": int(number)} if number else {"error": "the system allows no more processes"})
    except OSError as error:
        _send(channel, {"error": str(error)})
    os.close(reader)
    if writer >= 0:
        os.close(writer)
    return False


def _fork_and_leave() -> None:
    """Goes on in a child of this process, which ends."""
    child = -1
    try:
        child = os.fork()
    finally:
        if child != 0:
            os._exit(0)


def lost_threads() -> list[str]:
    """Names of the threads of this process that a fork would lose."""
    probe = os.fork()  # OpenBLAS ends its threads before a fork and starts them when they are needed again
    if probe == 0:
        os._exit(0)
    os.waitpid(probe, 0)
    tasks = Path("/proc/self/task")
    names = {int(task.name): (task / "comm").read_text().strip() for task in tasks.iterdir()}
    return sorted(name for number, name in names.items() if number != os.getpid() and name not in SAFE_THREADS)


def _become_run(channel: socket.socket, descriptors: Sequence[int], request: dict[str, Any]) -> None:
    channel.close()
    standard_input, log = descriptors
    for descriptor, number in ((standard_input, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    os.chdir(request["folder"])
    show_command([sys.executable, *request["shown"]])


def show_command(command: Sequence[str]) -> None:
    """Writes a command line over this process's own, where `ps` finds it, as setproctitle does: a text that the kernel
    reads up to its first zero, because the last byte of the whole is none."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    text = b" ".join(os.fsencode(word) for word in command)
    if start and len(text) < end - start - 1:
        whole = text.ljust(end - start - 1, b"\0") + b" "
        ctypes.memmove(start, whole, len(whole))


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.send(json.dumps(message).encode())
