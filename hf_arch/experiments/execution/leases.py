"""Leases: which worker trains which run, written as files in a folder that all workers share.

A lease on `name` is the file `<name>.<generation>`, made by an exclusive create, which one worker alone can win, on
network file systems too. Its owner touches it while it lives; a lease not touched for `seconds` seconds has lapsed, and
the next generation may be made. Nothing is ever deleted or renamed, so no worker can take away what another has just
made. An owner that was cut off finds the next generation there and gives up its run.

    lease = Leases(folder).take("gla_1a2b3c4d5e")
    if lease is not None:
        with lease: ...                            # lease.lost is set where another worker took over
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

LEASE_SECONDS = 60.0
BEATS_PER_LEASE = 5


class Leases:
    """The leases in one folder, which is made when the first is taken."""

    def __init__(self, folder: Path, seconds: float = LEASE_SECONDS) -> None:
        self.folder = folder
        self.seconds = seconds

    def take(self, name: str) -> Lease | None:
        """A lease on `name`, or None where another worker has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        newest = self._newest(name)
        if newest and not self._lapsed(self.path(name, newest)):
            return None
        path = self.path(name, newest + 1)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:  # another worker was faster
            return None
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(_this_process(), file)
        return Lease(path, self.path(name, newest + 2), self.seconds)

    def held(self, name: str) -> bool:
        """Whether a living worker has `name`."""
        newest = self._newest(name)
        return bool(newest) and not self._lapsed(self.path(name, newest))

    def path(self, name: str, generation: int) -> Path:
        """The file of a lease."""
        return self.folder / f"{name}.{generation}"

    def now(self) -> float:
        """The time by the clock that dates the files of this folder, which may be a server's."""
        probe = self.folder / f".clock.{uuid.uuid4().hex}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def _newest(self, name: str) -> int:
        pattern = re.compile(re.escape(name) + r"\.(\d+)")
        if not self.folder.is_dir():
            return 0
        return max(
            (int(match[1]) for entry in os.listdir(self.folder) if (match := pattern.fullmatch(entry))), default=0
        )

    def _lapsed(self, path: Path) -> bool:
        touched = path.stat().st_mtime
        if touched == 0:  # given back
            return True
        return self.now() - touched > self.seconds or _has_ended(path)


class Lease:
    """A lease that this process holds, kept alive by a thread until it is released."""

    def __init__(self, path: Path, successor: Path, seconds: float) -> None:
        self.path = path
        self.lost = threading.Event()
        self._successor, self._seconds = successor, seconds
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {path.name}", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Gives the run back: another worker can take it at once."""
        self._released.set()
        self._thread.join()
        if not self.lost.is_set():
            try:
                os.utime(self.path, (0, 0))
            except OSError:  # the folder is gone or cut off; the lease lapses by itself
                return

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()

    def _beat(self) -> None:
        touched = time.monotonic()
        while not self._released.wait(self._seconds / BEATS_PER_LEASE):
            try:
                if self._successor.exists():
                    self.lost.set()
                    return
                os.utime(self.path)
                touched = time.monotonic()
            except OSError:
                # A moment's trouble of a network file system must not end a run; a lease without a touch does.
                if time.monotonic() - touched > self._seconds:
                    self.lost.set()
                    return


def _this_process() -> dict[str, Any]:
    process = psutil.Process()
    return {"machine": _machine(), "pid": process.pid, "started": process.create_time()}


def _machine() -> str:
    """Equal for processes that can see each other: one host, since one boot, in one container."""
    parts = [socket.gethostname()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists():
        parts.append(boot.read_text().strip())
    if namespace.exists():
        parts.append(str(namespace.stat().st_ino))
    return " ".join(parts)


def _has_ended(path: Path) -> bool:
    """Whether the owner is known to be dead: it ran on this machine, and does not any more."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # just made, and not yet written
        return False
    if owner.get("machine") != _machine():
        return False
    try:
        return psutil.Process(owner["pid"]).create_time() != owner["started"]
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
