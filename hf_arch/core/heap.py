"""Memory of a process that trains: kept when tensors are freed, for the next ones.

The C library of Linux gives blocks of more than 32 MiB back to the system at each `free`, and the end of its heap too.
A training step frees what the next one allocates again, page by page, each of them zeroed by the system: at rows of
8,192 tokens that took as long as half of the computing (docs/performance.md). What a process holds at its peak grows by
a few percent, since other blocks may lie between; it gives all back when it ends.
"""

from __future__ import annotations

import ctypes
import sys

from hf_arch import environment

_SET_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_NEVER = -1
_ROOM = 64 * 2**20


def keep_memory() -> bool:
    """Makes the allocator of this process, and of those that it forks, keep what it has: no blocks of their own from
    the system, nothing given back. Without effect where the user has set the allocator, or it is not glibc's.

    Returns:
        Whether it will.
    """
    tunables = environment.read("GLIBC_TUNABLES") or ""
    library = _glibc()
    if library is None or "glibc.malloc" in tunables or any(environment.read(name) for name in _SET_BY_USER):
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _ROOM}
    return sum(library.mallopt(name, value) for name, value in settings.items()) == len(settings)


def give_back() -> None:
    """Gives the system what was freed and kept until now, so that what is taken from here on can be told from it."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(ctypes.c_size_t(0))


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "gnu_get_libc_version") else None
