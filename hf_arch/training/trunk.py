"""Branches of a trunk: a run that begins from another run's checkpoint, because until there both are the same run.

`experiment_config.json` of a trunk lists `branch_points` under `run`: steps whose checkpoints it keeps in `branches/`.
That of a branch has `branch: {folder, step}`. Before it is trained, the checkpoint is taken over: it has to be one of
the same model, data, order, seed, batch and optimiser, and the schedules of both runs have to give the same learning
rate for every step up to it and for the next. Metrics, wall time and what was measured before the first step are taken
with it. So the results are those of the branch trained from step 0, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json, write_atomic
from hf_arch.recipe.recipe import RUN_FACTS
from hf_arch.runs.files import CHECKPOINTS_DIR, CONFIG_FILE, METRICS_FILE, RESULTS_FILE, read_metrics
from hf_arch.runs.record import write_results
from hf_arch.schedules.choose import choose_schedule, scheduled_run
from hf_arch.training.checkpoint_record import RECORD_FILE, CheckpointRecord, find_checkpoint
from hf_arch.training.first_look import FIRST_LOOK
from hf_arch.training.identity import RunIdentity, compare

BRANCHES_DIR = "branches"
OF_THE_SCHEDULE = ("training.max_steps", "training.lr_scheduler_kwargs")
"""Where trunk and branch may differ, as long as the learning rates are the same so far."""


class BranchPoints(TrainerCallback):
    """Keeps the checkpoints of the steps from which other runs branch off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps = set(_facts(folder).get("branch_points") or ())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keeps the checkpoint that a trunk goes on from, where it was cut off between saving and keeping it."""
        self.on_save(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self.steps and state.is_world_process_zero:
            name = f"checkpoint-{state.global_step}"
            if not (self.folder / BRANCHES_DIR / name).is_dir():
                _copy(self.folder / CHECKPOINTS_DIR / name, self.folder / BRANCHES_DIR / name)


def begin_from_trunk(folder: Path, identity: RunIdentity, args: TrainingArguments) -> None:
    """Takes the checkpoint over from which the run in `folder` branches off, if it is a branch that has none yet.

    Raises `ConfigError` where the trunk is not the same run up to that step. Where the trunk has not kept the
    checkpoint, that is said, and the run begins at step 0.
    """
    branch = _facts(folder).get("branch")
    if branch is None:
        return
    with args.main_process_first(local=False, desc="the branch's first checkpoint"):
        if args.process_index == 0 and find_checkpoint(folder / CHECKPOINTS_DIR) is None:
            _take_over((folder / str(branch["folder"])).resolve(), int(branch["step"]), folder, identity)


def _take_over(trunk: Path, step: int, folder: Path, identity: RunIdentity) -> None:
    source = trunk / BRANCHES_DIR / f"checkpoint-{step}"
    if not (source / RECORD_FILE).is_file():
        print(f"branch: {trunk.name} keeps no checkpoint of step {step}: trained from step 0", file=sys.stderr)
        return
    record = CheckpointRecord.read(source)
    differing = [entry.key for entry in compare(record.identity, identity) if not entry.key.startswith(OF_THE_SCHEDULE)]
    if differing or record.step != step:
        raise ConfigError(
            f"branch: {trunk.name} is another run than this one until step {step}: {', '.join(differing)}"
        )
    rates = [learning_rates(side.training, step + 1) for side in (record.identity, identity)]
    if rates[0] != rates[1]:
        first = next(i for i, pair in enumerate(zip(*rates, strict=True)) if pair[0] != pair[1])
        raise ConfigError(f"branch: the learning rate of {trunk.name} differs from this run's at step {first + 1}")
    target = folder / CHECKPOINTS_DIR / source.name
    shutil.rmtree(target, ignore_errors=True)  # of a copy that was cut off
    taken = dataclasses.replace(record, identity=identity, changes=())
    _copy(source, target, taken)
    rows = [row for row in read_metrics(trunk / METRICS_FILE) if row["step"] <= step]
    write_atomic(folder / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    results = read_json(trunk / RESULTS_FILE)
    looked = {key: results[key] for key in FIRST_LOOK if key in results}
    before = read_json(folder / RESULTS_FILE) if (folder / RESULTS_FILE).is_file() else {}
    write_results(folder, {"status": "running", **before, **looked})


def learning_rates(training: Mapping[str, Any], steps: int) -> list[float]:
    """The learning rate of each of the first steps of a run with these resolved arguments."""
    schedule, run = choose_schedule(training), scheduled_run(training)
    if not schedule.follows_steps:
        raise ConfigError(f"branch: the schedule {schedule.name} does not follow from the step alone")
    return [schedule.rate(step, run) for step in range(steps)]


def _facts(folder: Path) -> Mapping[str, Any]:
    config = folder / CONFIG_FILE
    return (read_json(config).get(RUN_FACTS) or {}) if config.is_file() else {}


def _copy(source: Path, target: Path, record: CheckpointRecord | None = None) -> None:
    """Links the files of a checkpoint, whole or not at all, with its own record or another."""
    begun = target.with_name(f".{target.name}")
    shutil.rmtree(begun, ignore_errors=True)
    shutil.copytree(source, begun, copy_function=_link)
    if record is not None:
        (begun / RECORD_FILE).unlink()
        record.close(begun)
    shutil.rmtree(target, ignore_errors=True)
    begun.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
