"""Optimizer states shared out over data-parallel processes (ZeRO stage 1, Rajbhandari et al. 2020, arXiv 1910.02054).

Each process keeps the states of its share of the parameters, updates that share, and sends it to the others: the same
numbers as without, at 1/N of the states' memory. By torch's ZeroRedundancyOptimizer, so it needs neither DeepSpeed nor
a GPU. Checkpoints hold the states of all, in the form of the optimizer itself: a run may be resumed by any number of
processes, with or without sharing.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer

from hf_arch.core.errors import ConfigError
from hf_arch.training.compat import forget_gathered, has_gathered


class SharedOptimizer(ZeroRedundancyOptimizer):
    """The states of `optimizer`, which has made no step yet, shared out over all processes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        kind = type(optimizer)
        if not kind.__module__.startswith("torch.optim"):
            raise ConfigError(
                f"training.zero_redundancy: the states of {kind.__name__} cannot be sharded; nearest: "
                "`optim: adamw_torch_fused`"
            )
        known = inspect.signature(kind).parameters
        options = {name: value for name, value in optimizer.defaults.items() if name in known}
        super().__init__(optimizer.param_groups, optimizer_class=kind, **options)

    def gather(self) -> None:
        """Brings all states to the first process, whose `state_dict` is whole then; every process has to call this."""
        self.consolidate_state_dict(to=0)

    def state_dict(self) -> dict[str, Any]:
        """All states after `gather` on the first process, none otherwise; accelerate asks before there are any."""
        if not has_gathered(self):
            return torch.optim.Optimizer.state_dict(self)
        whole = super().state_dict()
        forget_gathered(self)
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps this process's share of a whole state."""
        super().load_state_dict(state_dict)
        self.state.clear()  # a second copy of the share
        for group in self.optim.param_groups:
            for parameter in group["params"] if group.get("fused") or group.get("capturable") else ():
                state = self.optim.state[parameter]
                if "step" in state:  # left on the CPU, where these kernels do not look for it
                    state["step"] = state["step"].to(parameter.device)
