"""What a learning-rate schedule is here: options, the rate of each step, and what follows from these.

    @SCHEDULES.register("one_minus_sqrt")
    class OneMinusSqrt(Schedule):
        Options = OneMinusSqrtOptions

        def factor(self, step, run):
            if step < run.warmup:
                return step / run.warmup
            return 1 - math.sqrt((step - run.warmup) / (run.steps - run.warmup))

`training.lr_scheduler_type: one_minus_sqrt` names it, `training.lr_scheduler_kwargs: {floor: 0.1}` sets its options.
All that is asked of a schedule elsewhere (whether its rate falls, what a longer run changes, whether runs can branch
from one) is answered by its rates, so that no name is ever compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hf_arch.core.errors import ConfigError
from hf_arch.core.options import Options
from hf_arch.core.plugins import plugin_error
from hf_arch.core.registry import SCHEDULES

DEFAULT = "cosine"
"""Of a recipe that names none."""
CONSTANT = 0.99
"""Of the highest rate: a schedule that never goes below it after its warm-up is constant."""
LOOKED_AT = 1000
"""Steps at which a rate is looked at, of a run that has more."""


@dataclass(frozen=True)
class ScheduledRun:
    """What the rates of a run follow from: its optimiser steps, how many of them are warm-up, and the recipe's learning
    rate."""

    steps: int
    warmup: int = 0
    learning_rate: float = 1.0


class Schedule:
    """Base of every schedule that `training.lr_scheduler_type` can name. `self.options` are its parsed options."""

    Options: ClassVar[type[Options]] = Options
    follows_steps: ClassVar[bool] = True
    """Whether the rate follows from the step alone, not from losses."""
    warms_up: ClassVar[bool] = True
    """Whether `training.warmup_steps` has an effect; it is refused otherwise."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def name(self) -> str:
        """The name under which it is registered."""
        return next((name for name, entry in SCHEDULES.items() if entry is type(self)), type(self).__name__)

    def factor(self, step: int, run: ScheduledRun) -> float:
        """What the learning rate is multiplied by in step `step`, counted from 0; from these arguments alone. It is
        asked for `run.steps` too, after the last step."""
        raise NotImplementedError(f"{type(self).__name__}.factor")

    def rate(self, step: int, run: ScheduledRun) -> float:
        """The learning rate of step `step`, counted from 0."""
        return run.learning_rate * self.factor(step, run)

    @classmethod
    def branch_options(cls, decay_steps: int) -> Mapping[str, Any] | None:
        """Options with which the last `decay_steps` steps of a run are its decay, and no step before knows how long the
        run is: runs of a ladder branch from one trunk then. None: not possible with this schedule."""
        return None

    def validate(self, run: ScheduledRun) -> None:
        """Raises a ConfigError where its options do not suit such a run."""

    def lowest_after_warmup(self, run: ScheduledRun) -> float:
        """The lowest rate after the warm-up, as a share of the highest; 1 for a constant rate."""
        rates = self._rates(run)
        top = max(range(len(rates)), key=rates.__getitem__)
        return min(rates[top:]) / rates[top] if rates[top] else 1.0

    def end(self, run: ScheduledRun) -> float:
        """The rate of the last step, as a share of the highest."""
        rates = self._rates(run)
        return rates[-1] / max(rates) if max(rates) else 1.0

    def _rates(self, run: ScheduledRun) -> list[float]:
        return [self.rate(step, run) for step in sampled_steps(run) if step < run.steps]

    def decays(self, run: ScheduledRun) -> bool:
        """Whether the rate falls after its warm-up, so that a loss in the middle is that of no run of that length."""
        return self.lowest_after_warmup(run) < CONSTANT

    def depends_on_length(self, run: ScheduledRun, steps: int) -> bool:
        """Whether a run of another number of `steps` has another rate in a step that both have."""
        other = replace(run, steps=steps)
        shared = min((run, other), key=lambda entry: entry.steps)
        steps_of_both = [step for step in sampled_steps(shared) if step < shared.steps]
        return any(self.rate(step, run) != self.rate(step, other) for step in steps_of_both)


def sampled_steps(run: ScheduledRun) -> list[int]:
    """Steps of a run in order, from 0 to `run.steps`: all, or of a long run the first, the last, those next to the end
    of the warm-up, and others evenly between."""
    if run.steps <= LOOKED_AT:
        return list(range(run.steps + 1))
    marked = {1, run.steps - 2, run.steps - 1, *(run.warmup + at for at in (-1, 0, 1))}
    even = {round(i * run.steps / LOOKED_AT) for i in range(LOOKED_AT + 1)}
    return sorted(step for step in marked | even if 0 <= step <= run.steps)


def check_rates(schedule: Schedule, run: ScheduledRun) -> None:
    """Raises `ConfigError` of one line where the schedule does not suit the run, raises an error of its own (named by
    the line of the user's file), or says a rate that is not a number of at least 0."""
    schedule.validate(run)
    if schedule.follows_steps:
        for step in sampled_steps(run):
            checked_rate(schedule, step, run)


def checked_rate(schedule: Schedule, step: int, run: ScheduledRun) -> float:
    """The rate of a step; ConfigError of one line where it is none."""
    where = f"training.lr_scheduler_type: {schedule.name!r}"
    try:
        rate = schedule.rate(step, run)
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{where}: step {step} of {run.steps}: {plugin_error(error)}") from error
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not math.isfinite(rate) or rate < 0:
        raise ConfigError(
            f"{where}: the learning rate of step {step} of {run.steps} is {rate!r}; expected a number of at least 0"
        )
    return float(rate)
