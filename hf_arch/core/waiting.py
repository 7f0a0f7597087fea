"""A word on stderr where something takes longer than a reader waits: on a busy machine imports alone take a minute."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE_SECONDS = 3.0
LOADING = "loading PyTorch and transformers"
IMPORT_SYSTEM = "<frozen importlib._bootstrap>"


@contextmanager
def announced(what: str, seconds: float | None = None, when: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Prints `what` to stderr once the block has lasted `seconds` (`PATIENCE_SECONDS`), where `when()` holds."""

    def say() -> None:
        if when():
            print(f"{what} ...", file=sys.stderr, flush=True)

    timer = threading.Timer(PATIENCE_SECONDS if seconds is None else seconds, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def importing() -> bool:
    """Whether the main thread is in the middle of an import."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_filename == IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False
