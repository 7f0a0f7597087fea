"""How a run can end other than well: distinguished by class, on the command line and in the process of a run."""

from __future__ import annotations

import signal


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, what to try, and from which checkpoint."""


class Interrupted(BaseException):
    """The run was stopped from outside and can be resumed. No `Exception`: it may be raised within any code, which must
    not take it for an error of its own, and no KeyboardInterrupt, for which command lines have one exit code.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.exit_code = 128 + number
        super().__init__(f"interrupted by {self.signal.name}; --resume continues from the last checkpoint")
