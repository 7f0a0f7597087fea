"""A folder that one process at a time writes to. The lock is of the system: it ends with the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on this system: nobody is kept out
    fcntl = None  # type: ignore[assignment]


@contextmanager
def only_writer(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process alone has `folder` inside the block, which others enter afterwards (`wait`) or with False.
    Nothing is written. Where the file system has no locks nobody is kept out."""
    if fcntl is None:
        yield True
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            alone = True
        except BlockingIOError:
            alone = False
        except OSError:  # no locks on this file system
            alone = True
        yield alone
    finally:
        os.close(opened)
