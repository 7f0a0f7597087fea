"""Which parameters weight decay leaves alone, told in every way that trainers look for.

Norms, biases, and what a module lists in `no_weight_decay` (decays, step sizes, mixing vectors) carry the usual mark
`_no_weight_decay = True`. transformers' Trainer (and with it TRL's) goes by neither marks nor dimensions but by names
and by nn.LayerNorm, and would decay Mamba's `A_log` and `D`; once a model of ours is built its rule leaves out, in
models of ours alone, what is exempt.
"""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any

from torch import nn

from ..environment import is_on, read
from .late_import import after_import

logger = logging.getLogger(__name__)


def exempt_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay must leave alone: those with fewer than two dimensions, biases of any,
    and those that a module lists in its `no_weight_decay`."""
    listed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "no_weight_decay", ())
    }
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim < 2 or name.endswith(".bias") or name in listed
    }


def mark_exempt_parameters(model: nn.Module) -> None:
    """Set `_no_weight_decay` on every exempt parameter."""
    exempt = exempt_parameter_names(model)
    for name, parameter in model.named_parameters():
        if name in exempt:
            parameter._no_weight_decay = True  # type: ignore[attr-defined]


def teach_trainer() -> None:
    """Make transformers' Trainer exempt them, now or when it is imported; once in a process, and without effect on
    other models. It is not imported for this: it takes as long as all that a model needs."""
    after_import("transformers.trainer", _teach)


def _teach(module: Any) -> None:
    Trainer = module.Trainer
    original: Any = Trainer.get_decay_parameter_names
    if getattr(original, "exempts_by_module", False):
        return

    @wraps(original)
    def get_decay_parameter_names(self: Any, model: nn.Module) -> list[str]:
        _warn_of_cpu_fsdp(self)
        names = original(self, model)
        if not any(hasattr(module, "no_weight_decay") for module in model.modules()):
            return names
        exempt = exempt_parameter_names(model)
        return [name for name in names if name not in exempt]

    get_decay_parameter_names.exempts_by_module = True  # type: ignore[attr-defined]
    Trainer.get_decay_parameter_names = get_decay_parameter_names


def _warn_of_cpu_fsdp(trainer: Any) -> None:
    """accelerate drops FSDP on CPUs, and our switch for it acts in ArchTrainer alone: who sets it is told so."""
    asked = is_on("HF_ARCH_CPU_FSDP") and read("ACCELERATE_USE_FSDP") == "true"
    if asked and trainer.args.device.type == "cpu" and not getattr(trainer, "is_fsdp_enabled", False):
        logger.warning(
            "HF_ARCH_CPU_FSDP=1 acts in `hf-arch train` and scripts/train.py alone: this Trainer runs without FSDP, as "
            "accelerate does on CPUs (DDP: every process holds everything)"
        )
