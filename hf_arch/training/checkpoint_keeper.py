"""What a trainer does with its checkpoints beside what Trainer does: a record of each, and what has to be set again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_arch.training.checkpoint_record import CheckpointRecord
from hf_arch.training.checkpoints import STATE_FILE
from hf_arch.training.resume import Continuation


class KeptTrainer(Protocol):
    """Of a trainer: what is kept of it in a checkpoint, and how it goes on."""

    args: TrainingArguments
    state: TrainerState

    def progress(self) -> dict[str, Any]:
        """What no file of Trainer's holds."""

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Goes on from it."""

    def evaluate_step(self) -> bool:
        """Evaluates where the step before an interruption was to; whether it is the best so far."""


class CheckpointKeeper(TrainerCallback):
    """Keeps the record of each checkpoint of a trainer, and sets what Trainer does not restore when it goes on."""

    trainer: KeptTrainer

    def __init__(self, continuation: Continuation, environment: Mapping[str, Any]) -> None:
        self.continuation = continuation
        self.environment = environment
        self._record: CheckpointRecord | None = None

    def open(self, folder: Path) -> None:
        """Before the files of a checkpoint are written; every process has to call this."""
        progress = self.trainer.progress()
        if self.trainer.args.should_save:
            step, now = self.trainer.state.global_step, self.continuation
            self._record = CheckpointRecord(step, now.identity, self.environment, now.changes, progress)
            self._record.write(folder)

    def close(self, folder: Path) -> None:
        """After the last one."""
        if self._record is not None:
            self._record.close(folder)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        checkpoint = self.continuation.checkpoint
        if checkpoint is None:
            return
        self.trainer.restore_progress(self.continuation.progress)
        args.eval_on_start = False  # which it did when it was begun
        state.save_steps = int(args.save_steps)  # Trainer takes that of the checkpoint without a word
        # A path in the folder that the run was begun in, which may have been copied or moved.
        best = json.loads((checkpoint / STATE_FILE).read_text()).get("best_model_checkpoint")
        if best is not None and (here := checkpoint.parent / Path(best).name).is_dir():
            state.best_model_checkpoint = str(here)


class LateEvaluation(TrainerCallback):
    """Makes the evaluation that an interruption left out. It has to be the last callback: those before it have begun by
    then, and a run whose last step is done calls no other."""

    def __init__(self, trainer: KeptTrainer, checkpoint: Path | None) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.evaluate_step() and self.checkpoint is not None:  # else known once the next one is saved
            state.best_model_checkpoint = str(self.checkpoint)
