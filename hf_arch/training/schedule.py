"""Learning rates that are said step by step, and what becomes of a schedule when a run is extended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from hf_arch.schedules.base import Schedule, ScheduledRun, checked_rate
from hf_arch.schedules.trainer_names import TrainerSchedule
from hf_arch.training.compat import set_last_rates

Rates = Callable[[int], float]
"""The learning rate of a step, counted from 0."""


def rates_of(schedule: Schedule, args: TrainingArguments) -> Rates | None:
    """The rates of a run with these arguments; None for one of transformers' own, which Trainer makes."""
    if isinstance(schedule, TrainerSchedule):
        return None
    run = ScheduledRun(args.max_steps, int(args.get_warmup_steps(args.max_steps)), args.learning_rate)
    return lambda step: checked_rate(schedule, step, run)


class RateSchedule(LambdaLR):
    """Sets the rate that `rates` says, not a factor of the highest, whose product would be rounded once more.

    Groups with another rate than `highest` keep their ratio to it.
    """

    def __init__(self, optimizer: Optimizer, rates: Rates, highest: float) -> None:
        self.highest = highest
        super().__init__(optimizer, rates)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the groups at the present step."""
        ratios = [float(base / self.highest) if self.highest else 0.0 for base in self.base_lrs]
        return [float(rate(self.last_epoch) * ratio) for rate, ratio in zip(self.lr_lambdas, ratios, strict=True)]


def follow_schedule(scheduler: Any) -> None:
    """Sets the learning rates of an extended run to those of its new length; without it the first step would still
    take the rate that the old length had left in the optimizer.
    """
    if not isinstance(scheduler, LambdaLR):
        return
    if isinstance(scheduler, RateSchedule):
        rates = [float(rate) for rate in scheduler.get_lr()]
    else:
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        rates = [float(base * factor(scheduler.last_epoch)) for base, factor in pairs]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    set_last_rates(scheduler, rates)
