"""From `training.lr_scheduler_type` and `training.lr_scheduler_kwargs` to a schedule, and whether it suits a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import hf_arch.schedules.trainer_names  # noqa: F401  registers what it holds
from hf_arch.core.errors import ConfigError
from hf_arch.core.options import parse_options
from hf_arch.core.registry import SCHEDULES
from hf_arch.schedules.base import DEFAULT, Schedule, ScheduledRun
from hf_arch.schedules.trainer_names import TrainerSchedule

NAME, ARGUMENTS = "training.lr_scheduler_type", "training.lr_scheduler_kwargs"
WITH_WARMUP = {"constant": "constant_with_warmup"}
"""The same schedule with a warm-up, of one that would leave it out without a word."""


def schedule_names() -> list[str]:
    """Every name that `training.lr_scheduler_type` may hold, those of plugins among them."""
    return list(SCHEDULES)


def choose_schedule(training: Mapping[str, Any]) -> Schedule:
    """The schedule that a `training` section, or resolved arguments, name, with its options.

    Raises `ConfigError` for an unknown name, option or value, and for a warm-up that would have no effect.
    """
    given = training.get("lr_scheduler_type") or DEFAULT
    name = str(getattr(given, "value", given))
    kind: type[Schedule] = SCHEDULES.get(name, NAME)
    warmup = training.get("warmup_steps")
    if warmup and not kind.warms_up:
        if name not in WITH_WARMUP:
            raise ConfigError(f"training.warmup_steps: {warmup:g} has no effect with {name!r}; leave it out")
        kind = SCHEDULES.get(WITH_WARMUP[name], NAME)
    options = training.get("lr_scheduler_kwargs") or {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"{ARGUMENTS}: expected options by name, got {options!r}", field=ARGUMENTS, value=options)
    return kind(parse_options(kind.Options, dict(options), ARGUMENTS))


def schedule_settings(schedule: Schedule) -> dict[str, Any]:
    """`lr_scheduler_type` and `lr_scheduler_kwargs` as the arguments of a run hold them; those of transformers' own are
    left as the recipe gives them."""
    if isinstance(schedule, TrainerSchedule):
        return {"lr_scheduler_type": schedule.name}
    return {"lr_scheduler_type": schedule.name, "lr_scheduler_kwargs": asdict(schedule.options)}


def scheduled_run(training: Mapping[str, Any], steps: int | None = None) -> ScheduledRun:
    """The run that a `training` section with resolved steps describes, of another number of `steps` if given."""
    count = int(training["max_steps"] if steps is None else steps)
    warmup = training.get("warmup_steps") or 0
    warmup = math.ceil(count * warmup) if 0 < warmup < 1 else int(warmup)
    return ScheduledRun(count, warmup, float(training.get("learning_rate", 1.0)))
