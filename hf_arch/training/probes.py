"""Learning a synthetic probe: a small model, generated rows, and the share of answers that it gets right.

    learned = learn_probe(model, train, test, ProbeTraining(max_steps=2000, learning_rate=3e-3))
    learned.final.accuracy

AdamW with a warm-up and a schedule; evaluation on all test rows every so many steps. Training ends early where the
accuracy passes `stop_accuracy`, if there is one. Answers are read at their own positions, or all of them from the last
state by a decoder that is told the position (`ProbeData.from_last_state`, compression). Scores are those of the final
weights; the best evaluation is kept beside them.
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

from hf_arch.core.errors import ConfigError, choice_error, unknown_key_error
from hf_arch.core.failures import TrainingError
from hf_arch.data.order import SeededOrder
from hf_arch.data.probes import IGNORE, ProbeData
from hf_arch.optimizers.parameters import scales_groups
from hf_arch.training.trainer import decay_parameter_names

EVAL_BATCH = 256
SCHEDULES = ("cosine", "cosine_with_min_lr", "constant")


@dataclass(frozen=True)
class ProbeTraining:
    """How a probe is learned; names as in TrainingArguments. `eval_steps` None: once a pass over the train rows;
    `max_grad_norm` 0: gradients are not clipped; `stop_accuracy` None: trained to the end."""

    max_steps: int
    per_device_train_batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    eval_steps: int | None = None
    seed: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    lr_scheduler_type: str = "cosine"
    lr_scheduler_kwargs: Mapping[str, Any] = field(default_factory=dict)
    stop_accuracy: float | None = 0.99

    def __post_init__(self) -> None:
        if self.lr_scheduler_type not in SCHEDULES:
            raise choice_error("training.lr_scheduler_type", self.lr_scheduler_type, SCHEDULES)
        known = ("min_lr",) if self.lr_scheduler_type == "cosine_with_min_lr" else ()
        for key in self.lr_scheduler_kwargs:
            if key not in known:
                raise unknown_key_error("training.lr_scheduler_kwargs", key, known)
        if known and not 0 <= self.lowest <= self.learning_rate:
            raise ConfigError(
                f"training.lr_scheduler_kwargs: min_lr {self.lowest:g} is not allowed; allowed: 0 to the learning rate "
                f"({self.learning_rate:g})"
            )

    @property
    def lowest(self) -> float:
        """The rate at the end of a cosine."""
        return float(self.lr_scheduler_kwargs.get("min_lr", 0.0))

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        warm = min(self.warmup_steps, max(1, self.max_steps // 10))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        if self.lr_scheduler_type == "constant":
            return self.learning_rate
        share = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.max_steps - warm)))
        return self.lowest + (self.learning_rate - self.lowest) * share


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


@dataclass
class Learned:
    """What came of it: every evaluation, the training loss at the end, and the speed of training."""

    scores: list[Score] = field(default_factory=list)
    train_loss: float = math.nan
    steps: int = 0
    tokens_per_second: float = 0.0

    @property
    def best(self) -> Score:
        """The evaluation with most right answers: chosen on the test rows, so an optimistic number."""
        return max(self.scores, key=lambda score: score.accuracy)

    @property
    def final(self) -> Score:
        """The evaluation of the final weights: what is reported."""
        return self.scores[-1]


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


class MadDecoder(nn.Module):
    """MAD's: the sum of the last state and a fixed sine and cosine of the position, two layers of width D with a norm
    before each, and a norm before the head."""

    place: Tensor

    def __init__(self, width: int, length: int, vocab_size: int) -> None:
        super().__init__()
        half = width // 2
        frequencies = 10_000 ** -(torch.arange(half) / max(1, half - 1))
        angles = torch.arange(length)[:, None] * frequencies
        place = F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width - 2 * half))
        self.register_buffer("place", place, persistent=False)
        blocks = [[nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()] for _ in range(2)]
        self.layers = nn.Sequential(*blocks[0], *blocks[1], nn.LayerNorm(width), nn.Linear(width, vocab_size))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, state: Tensor) -> Tensor:
        """Logits [B, T, V] of states [B, D]."""
        logits: Tensor = self.layers(state[:, None] + self.place)
        return logits


class ProbeModel(nn.Module):
    """A language model with the way in which the probe reads its answers."""

    def __init__(self, model: Any, data: ProbeData, mad_decoder: bool = False) -> None:
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
        reader = MadDecoder if mad_decoder else LastStateDecoder
        length = data.inputs.shape[1]
        self.decoder = reader(model.config.hidden_size, length, data.vocab_size) if data.from_last_state else None

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
    *,
    mad_decoder: bool = False,
) -> Learned:
    """Trains `model` (a causal language model) on the rows of `train` and scores it on `test`.

    `mad_decoder` reads compression by MAD's decoder.

    `on_log` gets a row of metrics at every evaluation: `step`, `loss`, `val_loss` (nats), `val_accuracy`,
    `learning_rate`, `tokens_seen`, `tokens_per_second`.

    Raises:
        TrainingError: the loss is no finite number any more.
    """
    device = device or next(model.parameters()).device
    learner = ProbeModel(model, train, mad_decoder).to(device)
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
        if options.max_grad_norm:
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
                "val_accuracy_macro": score.accuracy_macro,
                "learning_rate": options.rate(step),
                "tokens_seen": (step + 1) * tokens,
                "tokens_per_second": learned.tokens_per_second,
            }
        )
        if options.stop_accuracy is not None and score.accuracy >= options.stop_accuracy:
            break
        losses, began = [], time.perf_counter()
    return learned


@torch.no_grad()
def score_probe(learner: ProbeModel, data: ProbeData, step: int, device: torch.device) -> Score:
    """Accuracy and loss over all answers of `data`."""
    learner.eval()
    right, asked, given = (torch.zeros(data.vocab_size, dtype=torch.float64) for _ in range(3))
    nats = 0.0
    for start in range(0, len(data.inputs), EVAL_BATCH):
        rows = slice(start, start + EVAL_BATCH)
        logits, answers = learner(data.inputs[rows].to(device), data.labels[rows].to(device))
        guesses = logits[:, : data.vocab_size].argmax(dim=-1)
        nats += F.cross_entropy(logits.float(), answers, reduction="sum").item()
        for counts, tokens in ((right, answers[guesses == answers]), (asked, answers), (given, guesses)):
            counts += torch.bincount(tokens.cpu(), minlength=data.vocab_size)
    count = asked.sum().item()
    seen = (asked + given) > 0
    macro = (right[seen] / asked[seen].clamp(min=1)).mean().item()
    return Score(step, right.sum().item() / count, macro, nats / count)


def _optimizer(learner: ProbeModel, options: ProbeTraining) -> torch.optim.Optimizer:
    decayed = set(decay_parameter_names(learner))
    named = list(learner.named_parameters())
    groups = [
        {"params": [p for name, p in named if name in decayed], "weight_decay": options.weight_decay},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(options.adam_beta1, options.adam_beta2))
