"""The cosine and constant schedules of probes, whose first step takes a share of the learning rate and not 0: of w
warm-up steps the first takes 1 / w of it, the last all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.core.options import Options, options, parse_options
from hf_arch.schedules.base import Schedule, ScheduledRun
from hf_arch.schedules.choose import ARGUMENTS, choose_schedule, scheduled_run


@options
class LowestRate(Options):
    """`min_lr`: the rate at the end of the cosine."""

    min_lr: float = 0.0


class ProbeConstant(Schedule):
    """A constant rate after the warm-up. `name`: as the recipe calls it."""

    def __init__(self, name: str, options: Any) -> None:
        super().__init__(options)
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def factor(self, step: int, run: ScheduledRun) -> float:
        return self.rate(step, replace(run, learning_rate=1.0))

    def rate(self, step: int, run: ScheduledRun) -> float:
        if step < run.warmup:
            return run.learning_rate * (step + 1) / run.warmup
        return self.after_warmup(step, run)

    def after_warmup(self, step: int, run: ScheduledRun) -> float:
        """The rate of a step after the warm-up."""
        return run.learning_rate


class ProbeCosine(ProbeConstant):
    """Half a cosine, down to 0."""

    def after_warmup(self, step: int, run: ScheduledRun) -> float:
        share = 0.5 * (1 + math.cos(math.pi * (step - run.warmup) / max(1, run.steps - run.warmup)))
        lowest = float(getattr(self.options, "min_lr", 0.0))
        return lowest + (run.learning_rate - lowest) * share


class ProbeCosineToLowest(ProbeCosine):
    """Half a cosine, down to `min_lr`."""

    Options = LowestRate

    def validate(self, run: ScheduledRun) -> None:
        lowest = self.options.min_lr
        if not 0 <= lowest <= run.learning_rate:
            raise ConfigError(
                f"{ARGUMENTS}: min_lr {lowest!r} is not allowed; allowed: 0 to the learning rate "
                f"({run.learning_rate:g})"
            )


OF_PROBES: dict[str, type[ProbeConstant]] = {
    "constant": ProbeConstant,
    "constant_with_warmup": ProbeConstant,
    "cosine": ProbeCosine,
    "cosine_with_min_lr": ProbeCosineToLowest,
}


def probe_schedule(training: Mapping[str, Any]) -> Schedule:
    """The schedule of a probe with this section, resolved. Raises `ConfigError` for parameters that the schedule does
    not have, or a lowest rate above the highest."""
    name = str(training["lr_scheduler_type"])
    kind = OF_PROBES.get(name)
    if kind is None:
        return choose_schedule(training)
    given = dict(training.get("lr_scheduler_kwargs") or {})
    schedule = kind(name, parse_options(kind.Options, given, ARGUMENTS))
    schedule.validate(scheduled_run(training))
    return schedule
