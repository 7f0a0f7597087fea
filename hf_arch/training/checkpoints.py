"""Checkpoints of a run: which one to go on from, and what is said where one cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import TrainingArguments

from hf_arch.core.failures import TrainingError

STATE_FILE = "trainer_state.json"


def newest_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint of the highest step that is whole, or None. Trainer writes the state file last, so one that can
    be read and stands next to weights and optimiser closes a checkpoint; a half-written one is passed over.
    """
    found = []
    for folder in checkpoints.glob("checkpoint-*"):
        try:
            step = json.loads((folder / STATE_FILE).read_text())["global_step"]
        except (OSError, ValueError, KeyError):
            continue
        if list(folder.glob("*.safetensors")) or list(folder.glob("pytorch_model*")):
            found.append((step, folder))
    return max(found)[1] if found else None


def where_to_go_on(checkpoints: Path) -> str:
    """The last good checkpoint, in words that end a message of failure."""
    last = newest_checkpoint(checkpoints)
    return f"the last good checkpoint is {last}" if last else "no checkpoint had been saved yet"


def divergence(what: str, step: int, args: TrainingArguments) -> TrainingError:
    """The error of a run whose loss is not a number any more: `what` became so by `step`."""
    return TrainingError(
        f"{what} by step {step}; lower training.learning_rate ({args.learning_rate:g}) or lengthen "
        f"training.warmup_steps ({args.warmup_steps:g}); {where_to_go_on(Path(args.output_dir))}"
    )
