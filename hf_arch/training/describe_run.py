"""The identity of a run that is about to begin: its settings as they were resolved."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, TrainingArguments

from hf_arch.optimizers.choose import choose_optimizer, trainer_arguments
from hf_arch.optimizers.parameters import matrix_names
from hf_arch.runs.provenance import plugin_hashes
from hf_arch.training.decay import decay_parameter_names
from hf_arch.training.identity import RunIdentity, flat, resolved_steps
from hf_arch.training.step_watch import DEFAULT_MAX_SKIPPED_STEPS
from hf_arch.training.tasks.base import Task

# Where a run lies, which machine it is on and what the launcher chose: no options of a recipe. What of it matters is
# compared elsewhere (`precision`), or kept as part of the environment (processes, and how they divide a batch).
_NO_SETTINGS = (
    *("output_dir", "local_rank", "resume_from_checkpoint", "hub_token", "fsdp", "fsdp_config", "deepspeed"),
    *("bf16", "fp16", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
)
_NO_MODEL = ("transformers_version", "_name_or_path")


def describe_run(task: Task, args: TrainingArguments, precision: str, order: str) -> RunIdentity:
    """The identity of a run of `task`; `order` is its order fingerprint."""
    recipe, written = task.recipe, task.recipe.to_dict()
    model = json.loads(task.config.to_json_string(use_diff=False))
    identity = RunIdentity(
        model=flat({key: value for key, value in model.items() if key not in _NO_MODEL}),
        data={
            "fingerprint": task.fingerprint,
            "tokenizer": task.tokenizer_fingerprint,
            "sequence_length": task.sequence_length,
            "rows": list(task.rows),
            "order": order,
        },
        training={**_resolved(task.training, args), "precision": precision},
        evaluation=written.get("evaluation", {}),
        batch={"sequences": args.train_batch_size * args.gradient_accumulation_steps * args.world_size},
        optimiser=_parameter_hashes(task.config),
        plugins={name: digest[:16] for name, digest in plugin_hashes(recipe.plugins).items()},
        recipe=flat({key: value for key, value in written.items() if key != "experiment"}),
    )
    return RunIdentity.from_dict(identity.to_dict())


def _resolved(own: Mapping[str, Any], args: TrainingArguments) -> dict[str, Any]:
    """The arguments as they are meant; `own` is the `training` section, for what is no name of TrainingArguments."""
    values = {key: value for key, value in args.to_dict().items() if key not in _NO_SETTINGS}
    values |= resolved_steps(args)
    values["use_cpu"] = args.device.type == "cpu"  # several processes without a GPU set it by themselves
    values["max_skipped_steps"] = own.get("max_skipped_steps", DEFAULT_MAX_SKIPPED_STEPS)
    values["zero_redundancy"] = own.get("zero_redundancy", False)
    if own.get("optim") and not trainer_arguments(own):
        values |= {"optim": own["optim"], "optim_args": dataclasses.asdict(choose_optimizer(own).options)}
    return values


def _parameter_hashes(config: PreTrainedConfig) -> dict[str, str]:
    """From the model without its weights, on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    every = [
        f"{name} {tuple(parameter.shape)} {parameter.requires_grad}" for name, parameter in model.named_parameters()
    ]
    lists = {"parameters": every, "decayed": decay_parameter_names(model), "matrices": matrix_names(model)}
    return {key: hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] for key, names in lists.items()}
