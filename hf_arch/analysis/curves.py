"""Loss curves of runs: what was scored when, and whether a loss in the middle stands for a run that ends there.

It does where the learning rate is constant after its warm-up. Under a schedule that decays, the loss falls by the decay
itself: a loss before it is that of no run of that length, and a curve read there says nothing about smaller budgets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import finite
from hf_arch.runs.record import RunRecord
from hf_arch.schedules.base import CONSTANT, DEFAULT, Schedule, ScheduledRun


def points_by_step(run: RunRecord, key: str) -> dict[int, tuple[float, float]]:
    """{step: (tokens seen, loss)} of every row of metrics.jsonl that has the loss `key`."""
    rows = [row for row in run.metrics if finite(row.get(key)) is not None and finite(row.get("step")) is not None]
    last = max((row["step"] for row in rows), default=0)
    per_step = run.numbers.get("tokens_seen", 0.0) / last if last else 0.0
    return {row["step"]: (row.get("tokens_seen", row["step"] * per_step), row[key]) for row in rows}


def shared_curve(runs: Sequence[RunRecord], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n] and losses [runs, n], float64, at the steps that all runs have; of no points where there are none."""
    points = [points_by_step(run, key) for run in runs]
    steps = sorted(set.intersection(*(set(found) for found in points))) if points else []
    if not steps:
        return np.empty(0), np.empty((len(points), 0))
    values = np.asarray([[found[step] for step in steps] for found in points], dtype=np.float64)
    return values[..., 0].mean(axis=0), values[..., 1]


def recorded_schedule(run: RunRecord) -> tuple[Schedule, ScheduledRun] | None:
    """The schedule of a run by its recipe; None where that does not say it, or its plugin is not loaded."""
    from hf_arch.schedules.choose import choose_schedule, scheduled_run  # torch, which a comparison seldom needs

    training = run.config.get("training") or {}
    last = max((row["step"] for row in run.metrics if finite(row.get("step")) is not None), default=0)
    steps = int(run.numbers.get("steps") or training.get("max_steps") or last)
    rate = run.numbers.get("learning_rate")
    try:
        schedule = choose_schedule(training)
        scheduled = scheduled_run(training if rate is None else {**training, "learning_rate": rate}, steps)
        schedule.validate(scheduled)
    except ConfigError:
        return None
    return (schedule, scheduled) if schedule.follows_steps and steps > 0 else None


def decaying_schedule(run: RunRecord) -> str | None:
    """The name of the run's schedule where its rate decays; None where the rate is constant after its warm-up."""
    name = str((run.config.get("training") or {}).get("lr_scheduler_type") or DEFAULT)
    rates = [rate for row in run.metrics if (rate := finite(row.get("learning_rate"))) is not None]
    if not rates:
        found = recorded_schedule(run)
        return name if found is None or found[0].decays(found[1]) else None
    after = rates[int(np.argmax(rates)) :]
    return name if min(after) < CONSTANT * max(rates) else None


def first_reach(x: np.ndarray, losses: np.ndarray, target: float) -> float:
    """The x at which a curve first comes down to `target`; infinite where it does not, x[0] where it begins below.

    The curve is made non-increasing by isotonic regression, so that one lucky evaluation is no arrival, and read
    linearly in log x between its points. x, losses: float64 [n], x increasing and above 0.
    """
    falling = non_increasing(losses)
    below = np.flatnonzero(falling <= target + 1e-12)
    if not below.size:
        return float("inf")
    i = int(below[0])
    if i == 0:
        return float(x[0])
    share = (falling[i - 1] - target) / (falling[i - 1] - falling[i])
    return float(np.exp(np.log(x[i - 1]) + share * (np.log(x[i]) - np.log(x[i - 1]))))


def non_increasing(losses: np.ndarray) -> np.ndarray:
    """The closest non-increasing curve in least squares, float64 [n]."""
    from scipy.optimize import isotonic_regression

    return isotonic_regression(losses, increasing=False).x
