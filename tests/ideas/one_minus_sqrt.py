"""Warm-up, a constant rate, and a decay by one minus a square root (Hägele et al. 2024, arXiv 2405.18392).

f(t) = t / w, then 1, then 1 - (1 - floor) sqrt((t - T + d) / d) in the last d of T steps
"""

import math

from hf_arch.core.options import Options, options
from hf_arch.core.registry import SCHEDULES
from hf_arch.schedules.base import Schedule


@options
class OneMinusSqrtOptions(Options):
    """`decay_steps`: d. `floor`: the share of the rate at the end."""

    decay_steps: int = 2
    floor: float = 0.0


@SCHEDULES.register("idea_one_minus_sqrt")
class OneMinusSqrt(Schedule):
    Options = OneMinusSqrtOptions

    def factor(self, step, run):
        if step < run.warmup:
            return step / run.warmup
        into = step - (run.steps - self.options.decay_steps)
        return 1.0 if into <= 0 else 1 - (1 - self.options.floor) * math.sqrt(into / self.options.decay_steps)

    @classmethod
    def branch_options(cls, decay_steps):
        return {"decay_steps": decay_steps}
