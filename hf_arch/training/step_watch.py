"""Judges every optimiser step before it is taken: a loss or gradient that is not finite skips it, a spike is told.

A skipped step leaves weights and optimiser state as they are and counts as a step of the data and of the schedule.
After more than `max_skipped_steps` in a row the watch gives up. A spike is a loss above mean + max(6 deviations, 5 % of
the mean), both exponential averages over about the last 50 steps; it is told at its onset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

DEFAULT_MAX_SKIPPED_STEPS = 10
DECAY = 0.98
WARM_UP_STEPS = 50
SPIKE_DEVIATIONS = 6.0
SPIKE_SHARE = 0.05
_REMEMBERED = ("skipped_in_a_row", "_seen", "_mean", "_variance", "_in_spike")

OnEvent = Callable[[dict[str, Any]], None]


class StepWatch:
    """State over the steps of one process; `on_event` gets each event as a row of metrics: `step`, `event`, numbers."""

    def __init__(self, max_skipped_steps: int = DEFAULT_MAX_SKIPPED_STEPS, on_event: OnEvent | None = None) -> None:
        self.max_skipped_steps = max_skipped_steps
        self.on_event: OnEvent = on_event or (lambda _row: None)
        self.skipped_in_a_row = 0
        self._seen = 0
        self._mean = self._variance = 0.0
        self._in_spike = False

    def allows(self, step: int, loss: float, grad_norm: float) -> bool:
        """Whether step `step` may be taken, given its loss in nats and the norm of its gradient."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.skipped_in_a_row = 0
            self._look_for_spike(step, loss)
            return True
        self.skipped_in_a_row += 1
        self.on_event({"step": step, "event": "skipped step", "step_loss": str(loss), "step_grad_norm": str(grad_norm)})
        return False

    @property
    def gives_up(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return self.skipped_in_a_row > self.max_skipped_steps

    def state(self) -> dict[str, Any]:
        """What it has to remember where a run is resumed, as plain values."""
        return {name: getattr(self, name) for name in _REMEMBERED}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Sets what `state` gave."""
        for name in _REMEMBERED:
            setattr(self, name, state[name])

    def _look_for_spike(self, step: int, loss: float) -> None:
        limit = self._mean + max(SPIKE_DEVIATIONS * math.sqrt(self._variance), SPIKE_SHARE * self._mean)
        spike = self._seen >= WARM_UP_STEPS and loss > limit
        if spike and not self._in_spike:
            self.on_event({"step": step, "event": "loss spike", "step_loss": loss, "usual_loss": self._mean})
        self._in_spike = spike
        self._seen += 1
        weight = max(1 - DECAY, 1 / self._seen)  # a plain mean at first
        away = (min(loss, limit) if spike else loss) - self._mean  # a spike moves the averages no more than the limit
        self._mean += weight * away
        self._variance = (1 - weight) * (self._variance + weight * away**2)
