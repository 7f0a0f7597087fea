"""Learning a synthetic probe: a small model, generated rows, and the share of answers that it gets right.

    learned = learn_probe(model, train, test, ProbeTraining(max_steps=2000, learning_rate=3e-3))
    learned.best.accuracy

AdamW with a warm-up and a cosine to zero; evaluation on all test rows every so many steps. Training ends early where
the accuracy passes `stop_accuracy`. Answers are read at their own positions, or all of them from the last state by a
two-layer decoder that is told the position (`ProbeData.from_last_state`, compression).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_arch.core.errors import ConfigError
from hf_arch.core.failures import TrainingError
from hf_arch.data.order import SeededOrder
from hf_arch.data.probes import IGNORE, ProbeData
from hf_arch.training.scaled_groups import scales_groups
from hf_arch.training.trainer import decay_parameter_names

EVAL_BATCH = 256


@dataclass(frozen=True)
class ProbeTraining:
    """How a probe is learned; names as in TrainingArguments. `eval_steps` None: once a pass over the train rows."""

    max_steps: int
    per_device_train_batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    eval_steps: int | None = None
    seed: int = 0
    stop_accuracy: float = 0.99

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        warm = min(self.warmup_steps, max(1, self.max_steps // 10))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.max_steps - warm)))


@dataclass(frozen=True)
class Score:
    """After `step` steps: the share of right answers, and their mean loss in nats, on the test rows."""

    step: int
    accuracy: float
    loss: float


@dataclass
class Learned:
    """What came of it: every evaluation, the training loss at the end, and the speed of training."""

    scores: list[Score] = field(default_factory=list)
    train_loss: float = math.nan
    steps: int = 0
    tokens_per_second: float = 0.0

    @property
    def best(self) -> Score:
        """The evaluation with most right answers: what is reported, as in MAD and Zoology."""
        return max(self.scores, key=lambda score: score.accuracy)


class LastStateDecoder(nn.Module):
    """Reads every token of a row [B, T] from the model's last state [B, D]: two layers, told the position."""

    def __init__(self, width: int, length: int, vocab_size: int) -> None:
        super().__init__()
        self.position = nn.Embedding(length, width)
        self.hidden = nn.Linear(2 * width, 2 * width)
        self.out = nn.Linear(2 * width, vocab_size)

    def forward(self, state: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        places = self.position.weight[None].expand(state.shape[0], -1, -1)
        told = torch.cat([state[:, None].expand_as(places), places], dim=-1)
        return self.out(F.gelu(self.hidden(told)))


class ProbeModel(nn.Module):
    """A language model with the way in which the probe reads its answers."""

    def __init__(self, model: Any, data: ProbeData) -> None:
        super().__init__()
        if model.config.losses:
            raise ConfigError(
                f"model.losses: {model.config.losses[0]['type']!r} has no effect on a probe, which trains on its "
                "answers alone; leave it out"
            )
        if scales_groups(model):
            raise ConfigError(
                f"model.parametrization: {model.config.parametrization['type']!r} is not for probes; use standard"
            )
        self.model = model
        length = data.inputs.shape[1]
        self.decoder = (
            LastStateDecoder(model.config.hidden_size, length, data.vocab_size) if data.from_last_state else None
        )

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [A, V], answers [A]) of the A answers in int64 `inputs`, `labels` [B, T]."""
        if self.decoder is not None:
            state = self.model.model(input_ids=inputs, use_cache=False).last_hidden_state[:, -1]
            logits = self.decoder(state)
        else:
            logits = self.model(input_ids=inputs, use_cache=False).logits
        asked = labels != IGNORE
        return logits[asked], labels[asked]


def learn_probe(
    model: Any,
    train: ProbeData,
    test: ProbeData,
    options: ProbeTraining,
    on_log: Callable[[Mapping[str, Any]], None] = lambda row: None,
    device: torch.device | None = None,
) -> Learned:
    """Trains `model` (a causal language model) on the rows of `train` and scores it on `test`.

    `on_log` gets a row of metrics at every evaluation: `step`, `loss`, `val_loss` (nats), `val_accuracy`,
    `learning_rate`, `tokens_seen`, `tokens_per_second`.

    Raises:
        TrainingError: the loss is no finite number any more.
    """
    device = device or next(model.parameters()).device
    learner = ProbeModel(model, train).to(device)
    optimizer = _optimizer(learner, options)
    batch = min(options.per_device_train_batch_size, len(train.inputs))
    every = options.eval_steps or max(1, len(train.inputs) // batch)
    order = SeededOrder(len(train.inputs), options.seed)
    learned = Learned()
    tokens = batch * train.inputs.shape[1]
    losses: list[Tensor] = []
    spent, began = 0.0, time.perf_counter()
    for step in range(options.max_steps):
        learner.train()
        rows = torch.from_numpy(order.rows(np.arange(step * batch, (step + 1) * batch)))
        for group in optimizer.param_groups:
            group["lr"] = options.rate(step)
        logits, answers = learner(train.inputs[rows].to(device), train.labels[rows].to(device))
        loss = F.cross_entropy(logits.float(), answers)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), options.max_grad_norm)
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % every and step + 1 < options.max_steps:
            continue
        learned.train_loss = torch.stack(losses).mean().item()
        spent += time.perf_counter() - began
        learned.steps = step + 1
        learned.tokens_per_second = learned.steps * tokens / spent
        if not math.isfinite(learned.train_loss):
            raise TrainingError(
                f"the loss became {learned.train_loss} by step {step + 1}; lower training.learning_rate "
                f"({options.learning_rate:g})"
            )
        score = score_probe(learner, test, step + 1, device)
        learned.scores.append(score)
        on_log(
            {
                "step": step + 1,
                "loss": learned.train_loss,
                "val_loss": score.loss,
                "val_accuracy": score.accuracy,
                "learning_rate": options.rate(step),
                "tokens_seen": (step + 1) * tokens,
                "tokens_per_second": learned.tokens_per_second,
            }
        )
        if score.accuracy >= options.stop_accuracy:
            break
        losses, began = [], time.perf_counter()
    return learned


@torch.no_grad()
def score_probe(learner: ProbeModel, data: ProbeData, step: int, device: torch.device) -> Score:
    """Accuracy and loss over all answers of `data`."""
    learner.eval()
    right = nats = count = 0.0
    for start in range(0, len(data.inputs), EVAL_BATCH):
        rows = slice(start, start + EVAL_BATCH)
        logits, answers = learner(data.inputs[rows].to(device), data.labels[rows].to(device))
        right += (logits.argmax(dim=-1) == answers).sum().item()
        nats += F.cross_entropy(logits.float(), answers, reduction="sum").item()
        count += answers.numel()
    return Score(step, right / count, nats / count)


def _optimizer(learner: ProbeModel, options: ProbeTraining) -> torch.optim.Optimizer:
    decayed = set(decay_parameter_names(learner))
    named = list(learner.named_parameters())
    groups = [
        {"params": [p for name, p in named if name in decayed], "weight_decay": options.weight_decay},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95))
