"""The optimisers that transformers' Trainer knows by name (`adamw_torch_fused`, `adafactor`, ...), as entries of the
registry: Trainer builds them, over the groups that a parametrisation asks for where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers.training_args import OptimizerNames

from hf_arch.core.registry import OPTIMIZERS
from hf_arch.optimizers.base import PLAIN, OptimizerBuilder, OptimizerSettings, TrainedParameter


class TrainerOptimizer(OptimizerBuilder):
    """One of Trainer's own; its options stay the text that Trainer parses."""

    optim: ClassVar[str] = "adamw_torch"
    shards = True

    def group(self, parameter: TrainedParameter, settings: OptimizerSettings) -> dict[str, Any]:
        """With the epsilon of AdamW."""
        return {**super().group(parameter, settings), "eps": settings.eps * parameter.factors.eps}

    def build(self, parameters: Sequence[TrainedParameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
        if settings.trainer is None or settings.kind is None:
            return torch.optim.AdamW(self.groups(parameters, settings), betas=settings.betas)
        if all(entry.factors == PLAIN for entry in parameters):
            return settings.trainer()
        kind, given = settings.kind()
        given.pop("eps")
        return kind(self.groups(parameters, settings), **given)


for _name in OptimizerNames:
    _follows = _name.value.startswith("adamw_torch")
    _facts = {"optim": _name.value, "follows_parametrization": _follows, "__module__": __name__}
    OPTIMIZERS.register(_name.value)(type(f"Trainer_{_name.value}", (TrainerOptimizer,), _facts))
