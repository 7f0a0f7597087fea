"""The trainer of synthetic probes: the loss of the marked answers alone, and the share of them that is right.

Answers are read at their own positions, or all of them from the last state (`answer_decoders`). All test rows are
scored at every evaluation; training ends early where the accuracy passes `stop_accuracy`, if there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_arch.data.probes import IGNORE, ProbeData
from hf_arch.training.given_rows import GivenRows
from hf_arch.training.trainer import ArchTrainer


@dataclass(frozen=True)
class Score:
    """After `step` steps, on the test rows: the share of right answers, its mean over classes, the mean loss in nats.

    `accuracy_macro` is the mean over the tokens that are an answer, or were given as one, of the share of that token's
    answers that are right (torchmetrics' macro average, which MAD reports): a token given but never asked for counts 0.
    """

    step: int
    accuracy: float
    accuracy_macro: float
    loss: float


class ProbeRows(Dataset[dict[str, Tensor]]):
    """Rows of a probe for a DataLoader, which gets a whole batch at once (`collate_rows`)."""

    def __init__(self, data: ProbeData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._rows(index)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return self._rows(indices)

    def _rows(self, which: Any) -> dict[str, Tensor]:
        labels = self.data.labels[which]
        # Labels that stand where they are predicted are `shift_labels`; Trainer counts these, and looks for `labels`.
        return {"input_ids": self.data.inputs[which], "labels": labels, "shift_labels": labels}


def collate_rows(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `ProbeRows` gave: it is a batch already."""
    return batch


class ProbeTrainer(ArchTrainer):
    """ArchTrainer for one probe.

    Args:
        train_dataset, eval_dataset: `ProbeRows`.
        stop_accuracy: training ends above it; None: trained to the end.
    """

    eval_dataset: Any

    def __init__(self, *, stop_accuracy: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last_score: Score | None = None
        self._taken: list[float] = []  # losses of the steps since the last log
        self.add_callback(ProbeFlow(stop_accuracy))

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Mean nats of the answers of the whole step, over all its micro-batches and processes."""
        logits = model(input_ids=inputs["input_ids"], use_cache=False).logits
        answered, answers = _answered(logits, inputs["labels"])
        smoothing = self.args.label_smoothing_factor
        loss = F.cross_entropy(answered.float(), answers, label_smoothing=smoothing)
        count = kwargs.get("num_items_in_batch")
        if count is not None:
            loss = loss * (len(answers) / count)  # 1 where this is all of the step
        if count is not None and self.args.average_tokens_across_devices:
            loss = loss * self.args.world_size  # of the answers of all processes, and DDP takes the mean
        return (loss, logits) if return_outputs else loss

    def step_taken(self, loss: float) -> None:
        self._taken.append(loss)

    def mean_loss(self, total: float, steps: int) -> float:
        """Of the losses one by one: the running sum that Trainer keeps is rounded at each step."""
        losses, self._taken = torch.tensor(self._taken), []
        return losses.mean().item()

    def load_best(self) -> None:
        super().load_best()
        self.last_score = None  # of the weights of the last step, which is still the present one

    def progress(self) -> dict[str, Any]:
        return {**super().progress(), "taken": self._taken}

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        super().restore_progress(progress)
        self._taken = list(progress["taken"])

    def evaluation_numbers(self, dataset: Any = None) -> dict[str, float]:
        """Loss (nats/answer), accuracies and the plugins' metrics on all test rows, whatever `dataset` is."""
        score = self.score_answers()
        accuracies = {"accuracy": score.accuracy, "accuracy_macro": score.accuracy_macro}
        plugins = {f"metric_{name}": value for name, value in self.measure().items()}
        return {"loss": score.loss, **accuracies, **plugins}

    def score_answers(self) -> Score:
        """The score of the weights as they are: of all test rows, shared out over the processes."""
        if self.last_score is None or self.last_score.step != self.state.global_step:
            with self.accelerator.autocast():
                self.last_score = self._score()
        return self.last_score

    @torch.no_grad()
    def _score(self) -> Score:
        was_training = self.model.training
        self.model.eval()
        data, device = self.eval_dataset.data, self.args.device
        counts = torch.zeros(3, data.vocab_size, dtype=torch.float64)  # right, asked, given
        nats, size = 0.0, self.args.per_device_eval_batch_size
        processes, self.scored_rows = self.args.world_size, GivenRows()
        mine = range(self.args.process_index * size, len(data.inputs), processes * size)
        # Sharded parameters are gathered by all processes together: each runs as many forwards as the first.
        for turn in range(len(range(0, len(data.inputs), processes * size))):
            begin = mine.start + turn * mine.step
            rows = slice(begin, begin + size) if turn < len(mine) else slice(0, 1)
            labels = data.labels[rows] if turn < len(mine) else torch.full_like(data.labels[rows], IGNORE)
            inputs = data.inputs[rows].to(device)
            logits = self.model(input_ids=inputs, use_cache=False).logits
            self.scored_rows.add({"input_ids": inputs, "labels": labels.to(device)})
            answered, answers = _answered(logits, labels.to(device))
            guesses = answered[:, : data.vocab_size].argmax(dim=-1)
            nats += F.cross_entropy(answered.float(), answers, reduction="sum").item()
            for count, tokens in zip(counts, (answers[guesses == answers], answers, guesses), strict=True):
                count += torch.bincount(tokens.cpu(), minlength=data.vocab_size)
        self.model.train(was_training)
        totals = torch.cat([torch.tensor([nats], dtype=torch.float64), counts.flatten()]).to(device)
        totals = self.accelerator.reduce(totals, reduction="sum").cpu()
        right, asked, given = totals[1:].view_as(counts)
        count = asked.sum().item()
        seen = (asked + given) > 0
        macro = (right[seen] / asked[seen].clamp(min=1)).mean().item()
        return Score(self.state.global_step, right.sum().item() / count, macro, totals[0].item() / count)


class ProbeFlow(TrainerCallback):
    """Logs and scores the last step too, and ends training once the probe is solved.

    No checkpoint is written at the step that solved it: a run that goes on from there would train past it.
    """

    def __init__(self, stop_accuracy: float | None) -> None:
        self.stop_accuracy = stop_accuracy

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
        if state.global_step % state.eval_steps == 0 and args.eval_delay <= state.global_step:
            control.should_evaluate = True  # also where the run is told to stop: this may be where it is solved

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        if self.stop_accuracy is not None and metrics["eval_accuracy"] >= self.stop_accuracy:
            control.should_training_stop, control.should_save = True, False


def _answered(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [A, V], answers [A]) of the A answers in `logits` [B, T, V], `labels` [B, T]."""
    asked = labels != IGNORE
    return logits[asked], labels[asked]
