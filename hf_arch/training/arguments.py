"""`training` of a recipe -> transformers' TrainingArguments, with the few defaults that differ from theirs.

Every run is counted in optimiser steps: `num_train_epochs` and `"epoch"` strategies become steps here, because the
order of the data is a function of the step and runs on across the border of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, TrainingArguments

from hf_arch.core.errors import ConfigError
from hf_arch.optimizers.base import OptimizerSettings
from hf_arch.optimizers.choose import check_parametrization, choose_optimizer, trainer_arguments, try_optimizer
from hf_arch.optimizers.trainer_names import TrainerOptimizer
from hf_arch.schedules.base import DEFAULT as DEFAULT_SCHEDULE
from hf_arch.schedules.base import check_rates
from hf_arch.schedules.choose import choose_schedule, schedule_settings, scheduled_run
from hf_arch.schedules.trainer_names import TrainerSchedule
from hf_arch.training.compat import Trainer, use_one_gpu
from hf_arch.training.precision import Precision
from hf_arch.training.tracking import check_trackers

# Of a recipe's `training`, no names of TrainingArguments.
OWN_KEYS = ("precision", "max_skipped_steps", "zero_redundancy")

# Where transformers' default would be wrong or noisy for pre-training; anything a recipe says wins.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": DEFAULT_SCHEDULE,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "logging_steps": 10,
    "logging_first_step": True,
    "logging_nan_inf_filter": False,  # a loss that is not a number has to be seen
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": 2,
    "disable_tqdm": True,  # progress and reports are our own callbacks, on stderr
    "remove_unused_columns": False,
    "ignore_data_skip": True,  # our sampler seeks; transformers would count through the batches
    "ddp_find_unused_parameters": False,  # every parameter of a decoder takes part; looking for others costs a pass
    "seed": 0,
}


def build_arguments(
    training: Mapping[str, Any], precision: Precision, checkpoints: Path, num_rows: int, world_size: int = 1
) -> TrainingArguments:
    """The arguments of one run over a dataset of `num_rows` rows. Raises `ConfigError` for values that do not go
    together.
    """
    values = {**DEFAULTS, **{key: value for key, value in training.items() if key not in OWN_KEYS}}
    check_trackers(values.get("report_to"))
    # Of other optimisers Trainer knows nothing: their builder makes them.
    values = {key: value for key, value in values.items() if key not in ("optim", "optim_args")}
    values |= trainer_arguments(training)
    values.setdefault("per_device_eval_batch_size", values.get("per_device_train_batch_size", 8))
    values.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    if (world_size > 1 and not torch.cuda.is_available()) or not torch.accelerator.is_available():
        # Without it accelerate leaves each of several processes by itself, and transformers refuses bf16 on a CPU.
        values.setdefault("use_cpu", True)
    schedule = choose_schedule(values)
    settings = schedule_settings(schedule)
    if isinstance(schedule, TrainerSchedule):
        values |= settings
    else:  # Trainer does not know it, and is given its rates
        values = {**values, "lr_scheduler_type": "constant", "lr_scheduler_kwargs": None}
    _require_best_is_kept(values)
    batch = values.get("per_device_train_batch_size", 8) * values.get("gradient_accumulation_steps", 1) * world_size
    epoch_steps = max(1, math.ceil(num_rows / batch))
    if values.get("max_steps", -1) < 1:
        values["max_steps"] = max(1, math.ceil(values.get("num_train_epochs", 1.0) * num_rows / batch))
    check_rates(schedule, scheduled_run(values))
    for kind in ("logging", "eval", "save"):
        if values.get(f"{kind}_strategy") == "epoch":
            values[f"{kind}_strategy"], values[f"{kind}_steps"] = "steps", epoch_steps
    try:
        args = TrainingArguments(
            output_dir=str(checkpoints),
            bf16=precision.name == "bf16",
            fp16=precision.name == "fp16",
            **values,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {' '.join(str(error).split())}") from error
    for name, value in settings.items():
        if not isinstance(schedule, TrainerSchedule):
            setattr(args, name, value)
    use_one_gpu(args)
    return args


def optimizer_settings(args: TrainingArguments) -> OptimizerSettings:
    """What every optimiser takes from the arguments."""
    betas = (args.adam_beta1, args.adam_beta2)
    return OptimizerSettings(args.learning_rate, args.weight_decay, betas, args.adam_epsilon)


def check_model(config: PreTrainedConfig, args: TrainingArguments) -> None:
    """Raises `ConfigError` where the training is not supported for this model."""
    if args.label_smoothing_factor and any(
        getattr(ffn, "routed", False) for ffn, _ in getattr(config, "ffn_specs", ())
    ):
        raise ConfigError(
            f"training.label_smoothing_factor: {args.label_smoothing_factor:g} is not for a mixture of experts, whose "
            "balance is learned by a part of the loss that smoothing leaves out; nearest: 0"
        )

    losses = getattr(config, "losses", [])
    if args.label_smoothing_factor and losses:
        raise ConfigError(
            f"training.label_smoothing_factor: {args.label_smoothing_factor:g} leaves out the model's losses "
            f"({losses[0]['type']}); nearest: 0"
        )


def check_optimizer(config: PreTrainedConfig, args: TrainingArguments, training: Mapping[str, Any]) -> None:
    """Raises `ConfigError` where the optimiser does not follow the model's parametrisation, or its builder makes
    something that would not train the model as it should."""
    builder = choose_optimizer(training)
    check_parametrization(builder, config, zero_redundancy=bool(training.get("zero_redundancy")))
    if isinstance(builder, TrainerOptimizer):
        _require_package(args)
    else:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        try_optimizer(builder, model, optimizer_settings(args))


def _require_package(args: TrainingArguments) -> None:
    """Raises `ConfigError` where Trainer's optimiser is of a package that is not installed."""
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except ImportError as error:
        name = getattr(args.optim, "value", args.optim)
        raise ConfigError(f"training.optim: {name!r}: {' '.join(str(error).split())}") from error
    except ValueError:  # it wants to see the model
        return


def _require_best_is_kept(values: Mapping[str, Any]) -> None:
    """The best of the evaluations can be loaded at the end only where each has a checkpoint; Trainer says nothing where
    it has none, and what it then loads depends on where the run was interrupted."""
    every, saved = (values[f"{kind}_steps"] for kind in ("eval", "save"))
    plain = values["eval_strategy"] == values["save_strategy"] == "steps"
    if values.get("load_best_model_at_end") and plain and every != saved:
        raise ConfigError(
            f"training.save_steps: {saved:g} leaves evaluations (training.eval_steps: {every:g}) without checkpoints, "
            f"so the best could not be loaded at the end; nearest: {every:g}"
        )
