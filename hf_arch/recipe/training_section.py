"""The `training` section of a recipe: names of `transformers.TrainingArguments` and a few of ours, with their bounds.

What the bounds refuse here would otherwise end a run in its own process, after its folder was begun.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from hf_arch.core.errors import ConfigError, unknown_key_error
from hf_arch.deprecations import current_names
from hf_arch.recipe.sections import LIST_KEYS, coerce, require_mapping

# Ours besides the names of TrainingArguments: `precision`, what the run computes in; `zero_redundancy`, whether its
# processes share the optimizer states out; `max_skipped_steps`, how many steps in a row may have a loss that is no
# number; and the optimisers that plugins register.
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# Set by the run folder, the command line or the launcher, never by a recipe; or of parts of Trainer that have no place
# here, so that the key would be ignored, or undo what takes that place.
RESERVED_TRAINING = {
    "output_dir": "the folder is given by --output-dir",
    "resume_from_checkpoint": "use --resume to resume",
    "local_rank": "the launcher gives it",
    "bf16": "write `training.precision: bf16`",
    "fp16": "write `training.precision: fp16`",
    "fsdp": "launch by `accelerate launch --config_file recipes/accelerate/fsdp2.yaml`",
    "fsdp_config": "launch by `accelerate launch --config_file recipes/accelerate/fsdp2.yaml`",
    "deepspeed": "launch by `accelerate launch --config_file recipes/accelerate/zero1.yaml`",
    "ignore_data_skip": "a resumed run seeks to its rows by itself, and would skip them twice",
    "dataloader_in_order": "the order of the rows is a function of `training.data_seed` and the step, with any workers",
    "train_sampling_strategy": "the order of the rows is a function of `training.data_seed` and the step",
    "length_column_name": "all rows have one length",
    "dataloader_drop_last": "batches run on from one pass over the rows into the next, so none is cut short",
    "remove_unused_columns": "it would drop the target of each row's last token",
    "auto_find_batch_size": "steps and tokens are counted by the batch of the recipe",
    "bf16_full_eval": "evaluations are in `training.precision`",
    "fp16_full_eval": "evaluations are in `training.precision`",
    "hub_token": "a recipe is kept next to the results; set HF_TOKEN in the environment or in .env",
}
AT_LEAST_ONE = (
    *("max_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    "save_total_limit",
)
AT_LEAST_ZERO = (
    *("learning_rate", "weight_decay", "seed", "data_seed", "max_grad_norm", "warmup_steps", "adam_epsilon"),
    *("dataloader_num_workers", "max_skipped_steps"),
)
ABOVE_ZERO = ("num_train_epochs", "logging_steps", "eval_steps", "save_steps")
WHOLE_FROM_ONE = ("logging_steps", "eval_steps", "save_steps", "warmup_steps")  # below 1: a share of all steps
SHARES = ("adam_beta1", "adam_beta2", "label_smoothing_factor")


def training_fields() -> dict[str, Any]:
    """The keys of the section with their types."""
    from transformers import TrainingArguments

    from hf_arch.optimizers.choose import optimizer_names
    from hf_arch.schedules.choose import schedule_names

    fields = {field.name: field.type for field in dataclasses.fields(TrainingArguments) if field.init}
    fields = {name: hint for name, hint in fields.items() if name not in RESERVED_TRAINING}
    fields |= {"precision": Literal[PRECISIONS], "zero_redundancy": bool, "max_skipped_steps": int}
    fields["optim"] = Literal[tuple(optimizer_names())]
    fields["optim_args"] = str | dict[str, Any] | None
    fields["lr_scheduler_type"] = Literal[tuple(schedule_names())]
    fields["lr_scheduler_kwargs"] = dict[str, Any] | None  # text would be a JSON file's name
    return fields


def parse_training(values: object) -> dict[str, Any]:
    """The section, checked against the fields of `transformers.TrainingArguments`, their types and their bounds."""
    fields = training_fields()
    parsed = {}
    for key, value in current_names("training", require_mapping(values, "training")).items():
        if key in RESERVED_TRAINING:
            raise ConfigError(f"training.{key}: not a key of a recipe; {RESERVED_TRAINING[key]}")
        if key not in fields:
            raise unknown_key_error("training", key, fields, LIST_KEYS)
        parsed[key] = coerce(value, fields[key], f"training.{key}")
    if "optim" in parsed or "optim_args" in parsed:
        from hf_arch.optimizers.choose import choose_optimizer

        choose_optimizer(parsed)  # its options
    if "lr_scheduler_type" in parsed:
        from hf_arch.schedules.choose import choose_schedule

        choose_schedule(parsed)
    for keys, allowed, within in (
        (AT_LEAST_ONE, "at least 1", lambda value: value >= 1),
        (AT_LEAST_ZERO, "at least 0", lambda value: value >= 0),
        (ABOVE_ZERO, "a number above 0", lambda value: value > 0),
        (WHOLE_FROM_ONE, "a whole number, or a share below 1", lambda value: value < 1 or float(value).is_integer()),
        (SHARES, "a share from 0, below 1", lambda value: 0 <= value < 1),
    ):
        for key in keys:
            if isinstance(value := parsed.get(key), (int, float)) and not within(value):
                raise ConfigError(f"training.{key}: expected {allowed}, got {value}")
    return parsed
