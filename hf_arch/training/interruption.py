"""A run that is told to stop finishes its step, saves a checkpoint and leaves; `--resume` goes on from there.

SIGTERM (of a scheduler, or of `kill`) and SIGINT (Ctrl-C, or the runner of a set) mean the same. Between steps there is
nothing to finish, so while data is prepared or a model is measured they end the run at once, as a second signal does at
any time (not within two seconds of the first: a launcher hands on what the terminal has sent to all).

The exit code is 128 plus the number of the signal, as shells have it: 143 after SIGTERM, 130 after SIGINT.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_arch.core.failures import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 2.0


class StopRequest:
    """A context that hears both signals (in the main thread alone, the only one that Python lets hear them); what a
    parent has told this process to ignore stays ignored.

    `received` is the signal that this process has heard, `agreed` the one that all processes of the run know of;
    `leaves_evaluation`: the step that the run stops after was to be evaluated, which whoever goes on makes up for.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.agreed: int | None = None
        self.leaves_evaluation = False
        self._received_at = 0.0
        self._waits_for_step = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def waiting_for_steps(self) -> Iterator[None]:
        """Inside it a signal is kept for `StopAfterStep`; at its end a signal that came too late is obeyed."""
        self._waits_for_step = True
        try:
            yield
        finally:
            self._waits_for_step = False
        if (number := self.received or self.agreed) is not None:
            raise Interrupted(number)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._waits_for_step:
            raise Interrupted(number)
        if self.received is not None:
            if time.monotonic() - self._received_at < ECHO_SECONDS:
                return
            raise Interrupted(number)
        self.received, self._received_at = number, time.monotonic()
        # Not by print: the signal may have come in the middle of one.
        name = signal.Signals(number).name
        os.write(2, f"{name}: saving a checkpoint after this step; once more stops at once\n".encode())


class StopAfterStep(TrainerCallback):
    """Lets Trainer save and stop after the step in which the request was received, or agreed upon by all processes."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if (self.request.received if args.world_size == 1 else self.request.agreed) is not None:
            control.should_save = control.should_training_stop = True
            self.request.leaves_evaluation = control.should_evaluate
            control.should_evaluate = False
