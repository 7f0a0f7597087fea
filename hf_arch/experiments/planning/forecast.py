"""What a set would take before anything of it is trained: hours on this device, memory, disk. Nothing is written.

A step is timed on this device where that is quick (`evaluation/step_time.py`); memory is that of the step itself,
carried out on shapes (`evaluation/step_memory.py`). Time counts training steps and validation; neither the start of a
process nor what is measured on the trained model is in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.core.threads import usable_cores
from hf_arch.core.waiting import announced
from hf_arch.data.tokenizer import vocabulary_size
from hf_arch.environment import read
from hf_arch.evaluation.step_memory import step_memory
from hf_arch.evaluation.step_time import MEASURED, MODELLED, StepTimer
from hf_arch.experiments.planning.ladder import share_trained
from hf_arch.experiments.planning.plan import PlannedRun, Skipped
from hf_arch.experiments.planning.prepare import PreparedSet
from hf_arch.experiments.planning.ready_run import ReadyRun
from hf_arch.ops.native import keep_nothing
from hf_arch.recipe.recipe import Recipe
from hf_arch.training.arguments import DEFAULTS
from hf_arch.training.precision import DECIDABLE, OVERRIDE, choose_precision, training_device
from hf_arch.training.tasks.probe import probe_training

MEMORY_SECONDS = 10.0
"""How long the bytes of the steps of a set may be counted; the models after that have none."""
CHECKPOINT_BYTES = 12
"""Of a checkpoint for each parameter: fp32 weights and the two moments of AdamW."""
FORWARD_SHARE = 1 / 3
"""Of a training step, what a row costs that is only read."""


@dataclass(frozen=True)
class RunForecast:
    """One run of a set, its seeds together; numbers are of all seeds but for `memory_bytes`, of one at a time.

    done: seeds that are completed. share: of its steps, what it trains itself (a branch of a ladder takes the others
    over from its trunk). matched: relative difference to the size asked for. tokens, flops, seconds_each: of one seed,
    None where the recipe counts epochs of data that is not prepared. seconds: of what is still to be trained;
    `time_from` says whether a step was `measured` or comes from the `cost model`. disk_bytes: model and kept
    checkpoints.
    """

    name: str
    seeds: int
    done: int
    params_total: int
    matched: float | None
    state_bytes: int
    steps: int | None
    tokens: int | None
    flops: float | None
    seconds_each: float | None
    seconds: float | None
    time_from: str
    memory_bytes: int | None
    disk_bytes: int
    share: float = 1.0


@dataclass(frozen=True)
class Forecast:
    """A whole set on this device with `workers` runs at a time. `basis` says where the time comes from; `warnings` are
    sentences, among them about seeds that cannot decide the claims."""

    name: str
    device: str
    workers: int
    runs: tuple[RunForecast, ...]
    skipped: tuple[Skipped, ...]
    to_train: int
    basis: str
    warnings: tuple[str, ...] = field(default=())

    @property
    def flops(self) -> float:
        """Of the training that is left; of runs that count epochs of unknown data there are none."""
        return sum((run.flops or 0.0) * run.share * (run.seeds - run.done) for run in self.runs)

    @property
    def hours(self) -> float | None:
        """Of the training that is left; None where the tokens of a run are not known."""
        seconds = [run.seconds for run in self.runs]
        return None if None in seconds else sum(filter(None, seconds)) / self.workers / 3600

    @property
    def memory_bytes(self) -> int | None:
        """Of as many runs at a time as there are workers, the largest ones."""
        sizes = sorted((run.memory_bytes or 0 for run in self.runs for _ in range(run.seeds)), reverse=True)
        return sum(sizes[: self.workers]) or None

    @property
    def disk_bytes(self) -> int:
        """Of all run folders."""
        return sum(run.disk_bytes for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        totals = {name: getattr(self, name) for name in ("flops", "hours", "memory_bytes", "disk_bytes")}
        return {**asdict(self), **totals}


def document(found: Sequence[Forecast]) -> dict[str, Any]:
    """The JSON of a dry run: totals over the sets, which follow each other, and each set."""
    hours = [entry.hours for entry in found]
    return {
        "dry_run": True,
        "device": found[0].device,
        "hours": None if None in hours else sum(filter(None, hours)),
        "basis": found[-1].basis,
        "memory_bytes": max((entry.memory_bytes or 0 for entry in found), default=0) or None,
        "disk_bytes": sum(entry.disk_bytes for entry in found),
        "warnings": [line for entry in found for line in entry.warnings],
        "sets": [entry.to_dict() for entry in found],
    }


def forecast(
    name: str,
    prepared: PreparedSet,
    workers: int = 1,
    processes: int = 1,
    repeats: int = 1,
    timer: StepTimer | None = None,
) -> Forecast:
    """What the runs of a set that was prepared `dry` would take.

    Args:
        name: of the set.
        prepared: its runs.
        workers: runs at a time. processes: of one run. repeats: how often each run is trained (trials of a search).
        timer: to share what was measured with other sets.
    """
    device = training_device()
    timer = timer or step_timer(workers * processes)
    memory = _Memory()
    runs, waiting = [], 0
    with announced(f"{name}: measuring a few steps of each model on this device"):
        for planned, ready in _grouped(prepared):
            done = sum(run.status == "completed" for run in ready)
            waiting += len(ready) * repeats - done
            run = _run(planned, len(ready) * repeats, done, prepared, processes, timer, memory)
            share = share_trained(ready[0])
            runs.append(replace(run, share=share, seconds=None if run.seconds is None else run.seconds * share))
    return Forecast(
        name=name,
        device=str(device),
        workers=workers,
        runs=tuple(runs),
        skipped=tuple(prepared.plan.skipped),
        to_train=waiting,
        basis=_basis(runs, timer, workers),
        warnings=tuple(_missing_data(prepared)),
    )


def step_timer(processes: int = 1) -> StepTimer:
    """A timer for this device, where so many processes train at a time, that writes nothing."""
    keep_nothing()
    device = training_device()
    threads = max(1, usable_cores() // processes) if device.type == "cpu" and processes > 1 else None
    return StepTimer(device, _precision(device), threads)


def _precision(device: torch.device) -> str:
    """`auto` without the measurement that a run makes of a CPU, which is kept in the cache."""
    asked = read(OVERRIDE)
    if asked in DECIDABLE:
        return str(asked)
    return "fp32" if device.type == "cpu" else choose_precision("auto", device).name


def run_steps(recipe: Recipe, rows: int | None = None, processes: int = 1) -> int | None:
    """Optimiser steps of a run; None where the recipe counts epochs and the `rows` to learn from are not known."""
    if recipe.probe is not None:
        return int(_training(recipe, processes)["max_steps"])
    steps = recipe.training.get("max_steps")
    if steps is not None and steps >= 1:
        return int(steps)
    if rows is None:
        return None
    return max(1, math.ceil(recipe.training.get("num_train_epochs", 1.0) * rows / (_batch(recipe) * processes)))


def _batch(recipe: Recipe) -> int:
    """Rows of one process in one optimiser step."""
    training = _training(recipe)
    return int(training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1))


def _examples(recipe: Recipe) -> int:
    """Rows that a probe is learned from."""
    assert recipe.probe is not None
    return int(recipe.probe.options.get("examples", recipe.probe.settings.train_examples))


def _training(recipe: Recipe, processes: int = 1) -> Mapping[str, Any]:
    """The `training` section; of a probe with what its setting adds."""
    return recipe.training if recipe.probe is None else probe_training(recipe, _examples(recipe), processes)


def _grouped(prepared: PreparedSet) -> Iterator[tuple[PlannedRun, list[ReadyRun]]]:
    """The first of each run's seeds, and the runs of all of them."""
    for name in prepared.plan.names:
        pairs = [
            (planned, ready)
            for planned, ready in zip(prepared.plan.runs, prepared.runs, strict=True)
            if planned.name == name
        ]
        yield pairs[0][0], [ready for _planned, ready in pairs]


def _run(
    planned: PlannedRun, seeds: int, done: int, prepared: PreparedSet, processes: int, timer: StepTimer, memory: _Memory
) -> RunForecast:
    recipe, length = planned.recipe, planned.recipe.sequence_length
    data = getattr(prepared.data.get(recipe.data_key), "prepared", None)
    steps = run_steps(recipe, None if data is None else len(data.train), processes)
    cost = hf_arch.cost(planned.config, length)
    batch = _batch(recipe)
    accumulation = int(_training(recipe).get("gradient_accumulation_steps", 1))
    tokens = None if steps is None else steps * batch * length * processes
    per_step = timer.step(planned.config, batch // accumulation, length)
    seconds = None
    if steps is not None:
        validation = _validation_rows(recipe, steps, None if data is None else len(data.validation))
        seconds = per_step.seconds * (steps * accumulation + FORWARD_SHARE * validation * accumulation / batch)
    return RunForecast(
        name=planned.name,
        seeds=seeds,
        done=done,
        params_total=cost.params_total,
        matched=None if planned.matched is None else planned.matched.residual,
        state_bytes=cost.state_bytes(length),
        steps=steps,
        tokens=tokens,
        flops=None if tokens is None else tokens * cost.flops_per_token_train,
        seconds_each=seconds,
        seconds=None if seconds is None else seconds * max(0, seeds - done),
        time_from=per_step.source,
        memory_bytes=memory.of(planned, batch // accumulation, timer.dtype),
        disk_bytes=seeds * _disk(recipe, cost.params_total, steps),
    )


def _validation_rows(recipe: Recipe, steps: int, rows: int | None) -> int:
    """Rows that are read for validation during and after training. Probes stop early as soon as they are solved."""
    if recipe.probe is not None:
        return math.ceil(steps / _steps_between(recipe, steps)) * recipe.probe.settings.test_examples
    every = _steps_between(recipe, steps)
    options = recipe.evaluation
    known = [count for count in (options.sequences, rows) if count is not None]
    final = [count for count in (options.final_sequences, rows) if count is not None]
    return int(steps / max(1, every)) * min(known, default=0) + min(final, default=0)


def _steps_between(recipe: Recipe, steps: int) -> float:
    """Optimiser steps from one validation to the next."""
    every = float(_training(recipe).get("eval_steps", DEFAULTS["eval_steps"]))
    return max(1.0, every if every >= 1 else every * steps)


def _disk(recipe: Recipe, params: int, steps: int | None) -> int:
    """Bytes of a run folder: the model, and as many checkpoints as are kept."""
    training = {**DEFAULTS, **_training(recipe)}
    saved = 0
    if steps is not None and str(training["save_strategy"]) != "no":
        every = training["save_steps"] if training["save_steps"] >= 1 else training["save_steps"] * steps
        saved = math.ceil(steps / max(1, every))
    elif steps is None:
        saved = training["save_total_limit"] or 1
    kept = min(saved, training["save_total_limit"] or saved)
    return params * (4 + CHECKPOINT_BYTES * kept)


class _Memory:
    """Bytes of training steps, each distinct one counted once, as long as the time lasts."""

    def __init__(self) -> None:
        self._known: dict[Any, int | None] = {}
        self._left = MEMORY_SECONDS

    def of(self, planned: PlannedRun, batch: int, precision: str) -> int | None:
        training = planned.recipe.training
        checkpointing = bool(training.get("gradient_checkpointing") or training.get("activation_checkpointing"))
        key = (planned.config.to_json_string(), batch, planned.recipe.sequence_length, checkpointing)
        if key not in self._known:
            self._known[key] = self._count(planned, batch, precision, checkpointing) if self._left > 0 else None
        return self._known[key]

    def _count(self, planned: PlannedRun, batch: int, precision: str, checkpointing: bool) -> int | None:
        started = time.perf_counter()
        try:
            autocast = "fp32" if precision == "fp32" else "bf16"
            length, device = planned.recipe.sequence_length, training_device().type
            parts = step_memory(planned.config, batch, length, autocast, checkpointing, device)
            return sum(parts.values())
        except ConfigError:
            return None  # it depends on which expert a token goes to
        finally:
            self._left -= time.perf_counter() - started


def _missing_data(prepared: PreparedSet) -> list[str]:
    sections = {run.recipe.data_key: run.recipe.data for run in prepared.plan.runs if run.recipe.probe is None}
    lines = []
    for key, found in prepared.data.items():
        options = sections.get(key)
        if options is None or getattr(found, "prepared", found) is not None:
            continue
        name = " + ".join(options.mixture) if options.mixture is not None else options.corpus
        size = options.vocab_size if found.tokenizer is None else vocabulary_size(found.tokenizer)
        unknown = "" if found.fingerprint is not None else ", and which runs are done is not known"
        lines.append(f"data {name!r} is not prepared: sizes are for a vocabulary of {size}{unknown}")
    return lines


def _basis(runs: Sequence[RunForecast], timer: StepTimer, workers: int) -> str:
    """Where the time comes from, in words."""
    sources = {run.time_from for run in runs}
    how = "steps measured now" if sources == {MEASURED} else f"the cost model at {timer.rate / 1e9:.3g} GFLOP/s"
    if sources == {MEASURED, MODELLED}:
        how = f"steps measured now, else {how}"
    elif sources == {MODELLED} and not timer.rates:
        how += ", 30 % of what a matrix product reaches here"
    beside = "" if workers == 1 else f", {workers} runs at a time as if they did not slow each other"
    return f"{how} in {timer.dtype}{beside}; without the start of processes and measurements on the trained model"
