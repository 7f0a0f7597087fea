"""What a task says, and a run does not know by itself: the rows, the loss, how the model is scored, and which numbers
the record gets from it.

`hf_arch.training.run` makes the task of a recipe; the stages of a run, the trainer's steps, precision, optimisers,
resuming, distribution and the files of a run are the same for all tasks. A new task is a subclass of `Task` and, where
its loss or its score is its own, one of `ArchTrainer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

from hf_arch.data import SeededOrder
from hf_arch.recipe.recipe import Recipe
from hf_arch.schedules.base import Schedule
from hf_arch.schedules.choose import choose_schedule
from hf_arch.training.callbacks import MetricsLog
from hf_arch.training.trainer import ArchTrainer


class Task(ABC):
    """One task with its rows and the config of its model, made from a recipe.

    train: rows of `input_ids`, `labels` and `shift_labels` [T] (int64); rows: how many to train on and to be scored on.
    fingerprint: hex hash of all that decides the rows. tokenizer_fingerprint: of what the ids mean.
    sequence_length: tokens in a row. training: the recipe's section over the task's defaults.
    attribution: of the data, where it asks for one. isolates_documents: whether documents of a row are not to see each
    other. keeps_random_numbers: whether training draws on from the random
    numbers that made the weights, not from the seed anew.
    """

    trainer: ClassVar[type[ArchTrainer]] = ArchTrainer
    keeps_random_numbers: ClassVar[bool] = False

    config: PreTrainedConfig
    train: Dataset[Any]
    rows: tuple[int, int]
    fingerprint: str
    tokenizer_fingerprint: str
    sequence_length: int
    training: Mapping[str, Any]
    attribution: str | None = None
    isolates_documents: bool = False

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def order(self, seed: int) -> SeededOrder:
        """Which row each sample of the run is."""

    @abstractmethod
    def order_fingerprint(self, order: SeededOrder) -> str:
        """Equal for runs that see equal rows in the same order."""

    @abstractmethod
    def look(self) -> Tensor:
        """A row [1, T] that the model is shown before the first step."""

    def scored_together(self, trainer: ArchTrainer) -> Tensor | None:
        """The first rows [B, T] that `score` gives the model at once; None where that is no loss of their tokens."""
        return None

    @abstractmethod
    def trainer_options(self, args: TrainingArguments) -> dict[str, Any]:
        """What the trainer of this task is made with: its rows, its collator, and options of its own."""

    @abstractmethod
    def score(self, trainer: ArchTrainer, log: MetricsLog) -> dict[str, Any]:
        """Numbers of the record about the final weights, `final_val_loss` among them; every process takes part."""

    def schedule(self) -> Schedule:
        """The learning-rate schedule that `training` names."""
        return choose_schedule(self.training)

    def prepare(self, model: PreTrainedModel) -> None:  # noqa: B027 (most tasks add nothing)
        """Adds to the model what answers are read by."""

    @contextmanager
    def alone(self, model: PreTrainedModel) -> Iterator[None]:
        """Within it the model is the causal language model alone, as it is saved."""
        yield

    def save_beside(self, folder: Path) -> None:  # noqa: B027
        """Writes what is saved with the weights in `model/`."""

    def measure(self, trainer: ArchTrainer) -> dict[str, Any]:
        """Further numbers of the record, measured by the first process alone."""
        return {}
