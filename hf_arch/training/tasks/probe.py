"""A synthetic probe: a small model, generated rows, and the share of answers that it gets right.

`results.json` has, besides the numbers of every run, `accuracy`, the share of right answers of the final weights on the
test rows, `accuracy_macro`, its mean over the classes, and as extras `best_accuracy` and `best_accuracy_macro`, the
best evaluation of the run (chosen on the test rows, so optimistic). Losses are nats per answer.

Its cosine and constant schedules are its own (`hf_arch.training.tasks.probe_schedules`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from hf_arch.core.errors import ConfigError
from hf_arch.data import SeededOrder
from hf_arch.data.seen_rows import seen_rows
from hf_arch.evaluation.metric import metric_results, parse_metrics, try_metrics
from hf_arch.optimizers.parameters import scales_groups
from hf_arch.recipe.build import build_config
from hf_arch.recipe.probe import ProbeOptions
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.runs.provenance import order_fingerprint
from hf_arch.schedules.base import Schedule
from hf_arch.training.answer_decoders import LastStateDecoder, MadDecoder, read_from_last_state, without_decoder
from hf_arch.training.callbacks import MetricsLog
from hf_arch.training.identity import in_steps
from hf_arch.training.probe_trainer import ProbeRows, ProbeTrainer, collate_rows
from hf_arch.training.tasks.base import Task
from hf_arch.training.tasks.probe_schedules import probe_schedule
from hf_arch.training.trainer import ArchTrainer

EPOCHS = 16
MOST_WARM_UP = 0.1  # of all steps, where a recipe does not say how many
STOP_ACCURACY = 0.99
DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 256,
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "warmup_steps": 100,
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "precision": "fp32",
    "logging_first_step": False,
}


class ProbeTask(Task):
    """The rows of a recipe's `probe` section; raises `ConfigError` for a model or a training that is not for probes."""

    trainer = ProbeTrainer
    keeps_random_numbers = True

    def __init__(self, recipe: Recipe, processes: int = 1) -> None:
        super().__init__(recipe)
        assert recipe.probe is not None
        self.options: ProbeOptions = recipe.probe
        self.seed = recipe.training.get("data_seed", recipe.training.get("seed", 0))
        train, self.test = (self.options.data(split, self.seed) for split in ("train", "test"))
        self.config = build_config(recipe)
        _check_model(self.config)
        self.metrics = parse_metrics(recipe.evaluation.metrics)
        if self.metrics and train.from_last_state:
            raise ConfigError(
                f"evaluation.metrics: {next(iter(self.metrics))!r} reads the predictions of every position, and probe "
                f"{self.options.task!r} at setting {self.options.setting!r} is read from the last state; leave it out"
            )
        self.from_last_state, self.vocab_size = train.from_last_state, train.vocab_size
        self.train, self.learned = ProbeRows(train), train.inputs
        self.rows = (len(train.inputs), len(self.test.inputs))
        self.sequence_length = train.inputs.shape[1]
        self.training = probe_training(recipe, len(train.inputs), processes)
        self.fingerprint = hashlib.sha256(recipe.data_key.encode()).hexdigest()
        self.tokenizer_fingerprint = f"{train.vocab_size} ids"

    def order(self, seed: int) -> SeededOrder:
        return SeededOrder(self.rows[0], seed)

    def order_fingerprint(self, order: SeededOrder) -> str:
        return order_fingerprint(order, f"{self.fingerprint} {self.seed}")

    def look(self) -> Tensor:
        return self.test.inputs[:1]

    def trainer_options(self, args: TrainingArguments) -> dict[str, Any]:
        return {
            "train_dataset": self.train,
            "eval_dataset": ProbeRows(self.test),
            "metrics": self.metrics,
            "data_collator": collate_rows,
            "stop_accuracy": stop_accuracy(self.recipe),
        }

    def schedule(self) -> Schedule:
        return probe_schedule(self.training)

    def prepare(self, model: PreTrainedModel) -> None:
        if not self.from_last_state:
            try_metrics(self.metrics, model, ProbeRows(self.test)[0], model.device)
            return
        if scales_groups(model):
            raise ConfigError(
                f"model.parametrization: {model.config.parametrization['type']!r} is not for a probe that is read from "
                "the last state, whose decoder it does not know; use standard"
            )
        source = self.options.settings.source
        reader = MadDecoder if source is not None and source.mad_decoder else LastStateDecoder
        read_from_last_state(model, reader(model.config.hidden_size, self.sequence_length, self.vocab_size))

    @contextmanager
    def alone(self, model: PreTrainedModel) -> Iterator[None]:
        if not self.from_last_state:
            yield
            return
        with without_decoder(model):
            yield

    def score(self, trainer: ArchTrainer, log: MetricsLog) -> dict[str, Any]:
        assert isinstance(trainer, ProbeTrainer)
        last, steps = trainer.score_answers(), trainer.state.global_step
        evaluations = [row for row in read_metrics(log.path) if "val_accuracy" in row]
        return {
            "accuracy": last.accuracy,
            "accuracy_macro": last.accuracy_macro,
            **{
                f"best_{name}": max([score, *(row[f"val_{name}"] for row in evaluations)])
                for name, score in (("accuracy", last.accuracy), ("accuracy_macro", last.accuracy_macro))
            },
            "final_val_loss": last.loss,
            "seen_share": seen_rows(self.learned, self.test.inputs),
            "stopped_early": steps < trainer.args.max_steps,
            "plugin_metrics": metric_results(self.metrics, trainer.measure()),
        }


def probe_training(recipe: Recipe, rows: int, processes: int = 1) -> dict[str, Any]:
    """The `training` section of a probe's recipe with what it leaves open: by the setting's source, or `DEFAULTS`;
    evaluated once a pass over the `rows` to train on, in as many steps as make the epochs."""
    assert recipe.probe is not None
    given = recipe.training
    values = {**DEFAULTS, **recipe.probe.settings.defaults, **given}
    epochs = values.pop("num_train_epochs", EPOCHS)
    if "num_train_epochs" in given and "max_steps" not in given:
        values.pop("max_steps", None)
    batch = values["per_device_train_batch_size"] = min(values["per_device_train_batch_size"], rows)
    batch *= values.get("gradient_accumulation_steps", 1) * processes
    steps = values.setdefault("max_steps", max(1, round(epochs * rows / batch)))
    if "warmup_steps" not in given:
        values["warmup_steps"] = min(values["warmup_steps"], max(1, int(steps * MOST_WARM_UP)))
    every = values.setdefault("eval_steps", max(1, rows // batch))
    values.setdefault("logging_steps", in_steps(every, steps))
    probe_schedule(values)
    return values


def stop_accuracy(recipe: Recipe) -> float | None:
    """The accuracy above which training ends; None: trained to the end."""
    assert recipe.probe is not None
    source = recipe.probe.settings.source
    if recipe.probe.stop_accuracy is not None or source is None:
        return recipe.probe.stop_accuracy or STOP_ACCURACY
    return source.stop_accuracy


def _check_model(config: Any) -> None:
    if losses := getattr(config, "losses", None):
        raise ConfigError(
            f"model.losses: {losses[0]['type']!r} has no effect on a probe, which trains on its answers alone; leave "
            "it out"
        )
