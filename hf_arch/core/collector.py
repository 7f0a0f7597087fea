"""Imports without Python's search for cycles, which would look through the growing heap again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """No search inside, for imports. What is there at the end of the first one is never looked through again: it is
    what a process has imported at its start."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # later there are models, which have to be found
            gc.freeze()
        if enabled:
            gc.enable()
