"""For tests that interrupt what they start."""

from __future__ import annotations

import signal


def hear_interrupts() -> None:
    """Undo an ignored SIGINT, which a test run in a shell's background inherits and would hand on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
