"""What a run's recipe and model say, in the form in which runs are compared: shared settings, short convolutions."""

from __future__ import annotations

import re
from typing import Any

from hf_arch.runs.record import RunRecord

# Sections of a recipe in which runs of one comparison should agree; learning rate and seed have checks of their own.
SHARED_SECTIONS = ("data", "probe", "training", "evaluation")
BOOKKEEPING = (
    r"seed|data_seed|run_name|report_to|disable_tqdm|project|debug|use_cpu|push_to_hub|do_(train|eval|predict)"
    r"|(logging|log|save|dataloader|hub|trackio|include|eval_do|eval_use)_\w*|enable_jit_checkpoint"
    r"|eval_accumulation_steps|prediction_loss_only|batch_eval_metrics|skip_memory_metrics"
    r"|restore_callback_states_from_checkpoint"
)
"""Of `training`: what a run has to itself, or says of files, trackers and loading; no number of a model rests on it."""
_UNSHARED = re.compile(rf"\w+\.({BOOKKEEPING}|learning_rate)(\..*)?")


def shared_settings(run: RunRecord) -> dict[str, Any]:
    """{dotted key: value} of the sections that runs should share, and the precision that was chosen."""
    flat: dict[str, Any] = {}
    for section in SHARED_SECTIONS:
        flatten_section(section, run.config.get(section), flat)
    flat = {key: value for key, value in flat.items() if not _UNSHARED.fullmatch(key)}
    if run.precision is not None:
        flat["precision"] = run.precision
    return flat


def flatten_section(prefix: str, node: Any, into: dict[str, Any]) -> None:
    """Enters what a section of a recipe holds into `into`, by dotted keys that begin with `prefix`."""
    if isinstance(node, dict):
        for key, value in node.items():
            flatten_section(f"{prefix}.{key}", value, into)
    elif "." in prefix:
        into[prefix] = node


def has_short_convolution(run: RunRecord) -> bool:
    """Whether any mixer of the run's model uses a short convolution: by its modules where the run looked at them, else
    by its component table or its config."""
    if run.short_convolution is not None:
        return bool(run.short_convolution.get("layers"))
    described = (run.components, run.config.get("model"), run.experiment.get("config"))
    return any(_uses_convolution(node) for node in described)


def _uses_convolution(node: Any) -> bool:
    if isinstance(node, list):
        return any(_uses_convolution(item) for item in node)
    if not isinstance(node, dict):
        return False
    switches = [value for key, value in node.items() if key.startswith("use_") and "conv" in key]
    if switches:  # sizes are kept in a config whose convolution is switched off
        used = any(bool(value) for value in switches)
    else:
        used = any(
            _is_on(value) for key, value in node.items() if "conv" in key.lower() and not isinstance(value, dict)
        )
    return used or any(_uses_convolution(value) for value in node.values())


def _is_on(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() not in ("", "none", "off", "no", "false", "0")
    return bool(value)
