"""Going on with a run: only with what its checkpoint was trained with, and only from a checkpoint that is whole.

Each checkpoint holds `hf_arch_run.json`: the identity of the run (`hf_arch_run.identity`), the environment (versions,
source, device, processes), what was changed on purpose or by circumstance so far, and size and hash of its files.

- Another identity is refused by the names of the keys, before anything is written.
- More steps are a declared act (`--extend-to`), kept in `changes` of the run's files with the step.
- Another environment (a version, a device, the number of processes) may move the last digits: it is allowed, told, and
  kept in `changes` with its step.
- A checkpoint whose saving was cut off is passed over; one that lost something later is refused by what is missing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json
from hf_arch.runs.files import CONFIG_FILE
from hf_arch.schedules.base import Schedule
from hf_arch.schedules.choose import choose_schedule, scheduled_run
from hf_arch.training.checkpoint_record import Change, CheckpointRecord, find_checkpoint, step_of, unusable
from hf_arch.training.identity import Difference, RunIdentity, compare, recipe_differences, resolved_steps

if TYPE_CHECKING:
    from hf_arch.recipe.recipe import Recipe

NAMED_DIFFERENCES = 3
STEPS = "training.max_steps"


@dataclass(frozen=True)
class Continuation:
    """Where a run goes on, and as what.

    identity: what its next checkpoints are trained with.
    checkpoint: the one it goes on from; None where it begins at step 0.
    changes: all that were made since it was begun.
    said: what the user has to know of it, a line each.
    """

    identity: RunIdentity
    checkpoint: Path | None = None
    step: int = 0
    changes: tuple[Change, ...] = ()
    progress: Mapping[str, Any] = field(default_factory=dict)
    extended: bool = False
    said: tuple[str, ...] = ()

    @property
    def evaluation_due(self) -> bool:
        """Whether the step of the checkpoint was to be evaluated, and the run was told to stop before."""
        return bool(self.progress.get("evaluation_due"))


def plan_continuation(
    checkpoints: Path,
    identity: RunIdentity,
    environment: Mapping[str, Any],
    args: TrainingArguments,
    extend_to: int | None = None,
    schedule: Schedule | None = None,
) -> Continuation:
    """Where the run with this `identity` goes on, after comparing it with the newest checkpoint in `checkpoints`.

    `schedule` is the task's, by default the one that the run was begun with. `args` are set to the steps of an extended
    run. Raises `ConfigError` of one line for everything that differs, and for a
    checkpoint from which it cannot go on exactly. Writes nothing.
    """
    found = find_checkpoint(checkpoints)
    if found is None:
        if extend_to is not None:
            raise ConfigError(
                f"--extend-to: {extend_to} steps, but {checkpoints.parent} has no checkpoint to continue from"
            )
        return Continuation(identity)
    checkpoint, record = found
    begun = record.identity
    identity = _with_steps_of_an_extension(identity, record, extend_to)
    differences = compare(begun, identity)
    for entry in differences:
        if entry.key == "batch.sequences":
            raise ConfigError(_other_batch(entry, record, args))
    if differences := differences or _other_evaluation_batch(record, environment):
        raise ConfigError(_refusal(checkpoint, differences, extend_to))
    _check_sharding(checkpoint, record, environment)
    changes = _environment_changes(record, environment)
    said = [
        f"{change.key} is {_short(change.now)}, was {_short(change.begun)}: kept in `changes`" for change in changes
    ]
    steps = begun.max_steps
    if extend_to is not None:
        steps = _checked_extension(extend_to, begun, record.step)
        note = _schedule_note(schedule or choose_schedule(begun.training), begun, steps, record.step)
        changes.append(Change(record.step, STEPS, begun.max_steps, steps, note))
        said.append(f"extended from {begun.max_steps} to {steps} steps; {note}")
    for key in ("warmup_steps", "logging_steps", "eval_steps"):
        setattr(args, key, begun.training.get(key, getattr(args, key)))
    args.save_steps = resolved_steps(args)["save_steps"]
    args.max_steps = steps
    return Continuation(
        dataclasses.replace(begun, recipe=identity.recipe, training={**identity.training, "max_steps": steps}),
        checkpoint,
        record.step,
        (*record.changes, *changes),
        record.progress,
        extend_to is not None,
        tuple(f"resumed at step {record.step}: {line}" for line in said),
    )


def extended_recipe(recipe: Recipe, args: TrainingArguments, continuation: Continuation) -> Recipe:
    """The recipe as the run's files state it: with the steps of an extended run, and those of its warm-up and
    intervals, which a recipe may give as shares of the steps that it was begun with.
    """
    if not any(change.key == STEPS for change in continuation.changes):
        return recipe
    intervals = {key: value for key in ("logging_steps", "eval_steps", "warmup_steps") if (value := getattr(args, key))}
    training = {**recipe.training, **intervals, "max_steps": args.max_steps}
    return dataclasses.replace(recipe, training=training)


def check_finished(checkpoints: Path, identity: RunIdentity) -> None:
    """Raises `ConfigError` where a finished run is asked for with other settings than its newest checkpoint had."""
    for folder in sorted(checkpoints.glob("checkpoint-*"), key=step_of, reverse=True)[:1]:
        record = CheckpointRecord.read(folder)
        now = _with_steps_of_an_extension(identity, record)
        if differences := compare(record.identity, now):
            raise ConfigError(_refusal(folder, differences, None))


def has_checkpoints(checkpoints: Path) -> bool:
    """Whether anything was saved there."""
    return any(checkpoints.glob("checkpoint-*"))


def check_finished_recipe(folder: Path, recipe: Recipe) -> None:
    """Raises `ConfigError` where the finished run in `folder`, which keeps no checkpoint, had another recipe."""
    written = folder / CONFIG_FILE
    if written.is_file() and (found := recipe_differences(read_json(written), recipe)):
        raise ConfigError(f"--resume: the run in {folder} is finished, and {described(found)}; name another folder")


def describe_environment(facts: Mapping[str, Any], args: TrainingArguments, sharding: str) -> dict[str, Any]:
    """What may move the last digits of a run but is no setting of it: `facts` about the machine
    (`provenance.environment`), the processes and how they divide a batch; `sharding`: fsdp, deepspeed or nothing.
    """
    facts = dict(facts)
    versions = facts.pop("versions")
    return {
        **facts,
        **versions,
        "processes": args.world_size,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "per_device_eval_batch_size": args.per_device_eval_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "strategy": sharding,
    }


def _with_steps_of_an_extension(
    identity: RunIdentity, record: CheckpointRecord, extend_to: int | None = None
) -> RunIdentity:
    """A recipe with the steps from before an extension means the extended run, one with those of `extend_to` says the
    same twice.
    """
    meant = {extend_to, *(change.begun for change in record.changes if change.key == STEPS)}
    if identity.max_steps in meant:
        return dataclasses.replace(identity, training={**identity.training, "max_steps": record.identity.max_steps})
    return identity


def _checked_extension(steps: int, begun: RunIdentity, done: int) -> int:
    if steps <= done:
        raise ConfigError(f"--extend-to: {steps} steps, but {done} are done; expected more than {begun.max_steps}")
    if steps == begun.max_steps:
        raise ConfigError(f"--extend-to: the run has {steps} steps already; leave it out, or name more")
    if steps < begun.max_steps:
        raise ConfigError(
            f"--extend-to: {steps} steps are fewer than the {begun.max_steps} that the run has; a shorter run is "
            "another run"
        )
    return steps


def _schedule_note(schedule: Schedule, begun: RunIdentity, steps: int, done: int) -> str:
    """What becomes of the learning rate, in one line."""
    old, new = (scheduled_run(begun.training, length) for length in (begun.max_steps, steps))
    if not schedule.follows_steps or not schedule.depends_on_length(old, steps):
        return f"schedule {schedule.name} does not know the length of a run and continues unchanged"
    return (
        f"from step {done + 1} on the schedule ({schedule.name}) is that of a run of {steps} steps: a learning rate of "
        f"{schedule.rate(done, new):.4g} there instead of {schedule.rate(done, old):.4g}"
    )


def _environment_changes(record: CheckpointRecord, environment: Mapping[str, Any]) -> list[Change]:
    keys = dict.fromkeys([*environment, *record.environment])
    pairs = [(key, record.environment.get(key), environment.get(key)) for key in keys if key != "strategy"]
    return [Change(record.step, f"environment.{key}", old, new) for key, old, new in pairs if old != new]


def _check_sharding(checkpoint: Path, record: CheckpointRecord, environment: Mapping[str, Any]) -> None:
    old, new = (str(side.get("strategy")) for side in (record.environment, environment))
    for name in ("fsdp", "deepspeed"):
        if old.startswith(name) != new.startswith(name):
            which = old if old.startswith(name) else "one process or DDP"
            raise unusable(checkpoint, f"is one of {which}, which only it can read; launch it so again")
    old_size, new_size = (side.get("processes") for side in (record.environment, environment))
    if old.startswith("deepspeed") and old_size != new_size:
        raise unusable(checkpoint, f"is sharded over {old_size} processes, and {new_size} were launched")


def _other_batch(difference: Difference, record: CheckpointRecord, args: TrainingArguments) -> str:
    same_rows = record.environment.get("per_device_train_batch_size") == args.per_device_train_batch_size
    same_accumulation = record.environment.get("gradient_accumulation_steps") == args.gradient_accumulation_steps
    key = "gradient_accumulation_steps" if same_rows and not same_accumulation else "per_device_train_batch_size"
    value = getattr(args, key)
    nearest, left = divmod(difference.begun, difference.now // value)
    return (
        f"training.{key}: {value} gives {difference.now} sequences a step with "
        f"{args.world_size} process{'es' if args.world_size > 1 else ''}, but the run was begun with {difference.begun}"
        + ("" if left or not nearest else f"; nearest: {nearest}")
    )


def _other_evaluation_batch(record: CheckpointRecord, environment: Mapping[str, Any]) -> list[Difference]:
    """The rows that are scored at once, where they do not follow from another division of the batch."""
    key = "per_device_eval_batch_size"
    division = ("processes", "per_device_train_batch_size", "gradient_accumulation_steps")
    was, now = record.environment, environment
    if was.get(key) == now.get(key) or any(was.get(name) != now.get(name) for name in division):
        return []
    return [Difference(f"training.{key}", was.get(key), now.get(key))]


def _refusal(checkpoint: Path, differences: list[Difference], extend_to: int | None) -> str:
    steps = next((entry for entry in differences if entry.key == STEPS), None)
    advice = "resume with the recipe it was trained with, or begin a new run in another folder"
    if steps is not None and len(differences) == 1 and extend_to is None and steps.now > steps.begun:
        advice = f"leave max_steps as it was and add `--extend-to {steps.now}`, or begin a new run in another folder"
    return f"--resume: {checkpoint.name} was not trained so: {described(differences)}; {advice}"


def described(differences: list[Difference]) -> str:
    """The first few differences in words."""
    named = [f"{entry.key} is {_short(entry.now)}, was {_short(entry.begun)}" for entry in differences]
    more = len(named) - NAMED_DIFFERENCES
    return ", ".join(named[:NAMED_DIFFERENCES]) + (f" (and {more} more)" if more > 0 else "")


def _short(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 100 else f"{text[:40]} ... {text[-50:]}"  # paths differ at their end
