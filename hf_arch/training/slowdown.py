"""A run that becomes much slower than it was says so once, with what can be seen of the cause.

Other work on the machine is the usual one. Two signs tell how: the processor time that this process got (`cores`), and
the load of the machine. A process that got its cores and is slow all the same waits in spinning threads, or computes
slower (heat, memory that is swapped).
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_arch.core.threads import usable_cores
from hf_arch.environment import read
from hf_arch.training.callbacks import MetricsLog

TIMES_SLOWER = 3.0
MIN_SECONDS = 2.0
"""Shorter windows are noise."""


class SlowdownWatch(TrainerCallback):
    """Compares each logging window with the fastest one so far. To be added after the `MetricsLog` that it reads."""

    def __init__(self, log: MetricsLog) -> None:
        self.log = log
        self.told = False
        self._mark()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clocks."""
        self._mark()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """After each logged loss."""
        if not logs or "loss" not in logs:
            return
        wall, processor = time.perf_counter() - self._wall, time.process_time() - self._processor
        self._mark()
        speeds = self.log.speeds
        if self.told or not state.is_world_process_zero or len(speeds) < 2 or wall < MIN_SECONDS:
            return
        best = max(speeds[:-1])
        if TIMES_SLOWER * speeds[-1] > best:
            return
        self.told = True
        cause = describe_cause(processor / wall, torch.get_num_threads()) if args.device.type == "cpu" else ""
        print(
            f"step {state.global_step}: {best / speeds[-1]:.1f} times slower than this run was before "
            f"({speeds[-1]:,.0f} tokens/s, {best:,.0f} at best){cause}",
            file=sys.stderr,
            flush=True,
        )

    def _mark(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()


def describe_cause(cores: float, threads: int, load: float | None = None) -> str:
    """What to think of a slow window in which this process computed on so many `cores` with so many `threads`."""
    if load is None and hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
    seen = f": it got {cores:.1f} of {min(threads, usable_cores())} cores"
    if load is not None:
        seen += f", and {load:.1f} processes want the machine's {os.cpu_count() or 1}"
    others = (load or 0.0) > threads + 1
    if not others and cores < 0.7 * min(threads, usable_cores()):
        return seen + "; it waits for something else: memory that is swapped, a slow disk"
    spins = threads > 1 and (read("OMP_WAIT_POLICY") or "").upper() != "PASSIVE"
    if others and spins:
        return seen + "; resumed with OMP_WAIT_POLICY=PASSIVE its threads leave the cores to who computes"
    return seen + ("; other work slows it down" if others else "; the machine itself computes slower than before")
