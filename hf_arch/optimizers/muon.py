"""Muon for the matrices of the blocks, AdamW for every other parameter, as one optimiser.

Muon (Jordan et al. 2024) steps along the orthogonalised momentum of a matrix: with B its momentum and B = U S V^T, the
step is lr c U V^T, found by a few Newton-Schulz iterations (`torch.optim.Muon`). With c = 0.2 sqrt(max(rows, columns))
(Liu et al. 2025, arXiv 2502.16982, "match_rms_adamw") its root mean square is that of an AdamW step, so one learning
rate, one weight decay and one schedule serve both parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import nn

from hf_arch.core.errors import ConfigError
from hf_arch.core.options import Options, options
from hf_arch.core.registry import OPTIMIZERS
from hf_arch.optimizers.base import OptimizerBuilder, OptimizerSettings, TrainedParameter


class MuonWithAdamW(torch.optim.Optimizer):
    """One list of parameter groups and one state over `torch.optim.Muon` and `torch.optim.AdamW`.

    Args:
        matrices: parameters with two dimensions, for Muon.
        others: parameter groups with a `weight_decay` each, for AdamW.
        lr, weight_decay: of both parts (of the matrices).
        betas, eps: of AdamW.
        muon: options of `torch.optim.Muon`.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        muon: dict[str, Any],
    ) -> None:
        self._muon = torch.optim.Muon(list(matrices), lr=lr, weight_decay=weight_decay, **muon)
        self._adamw = torch.optim.AdamW(list(others), lr=lr, betas=betas, eps=eps)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Both parts take their step; the loss of `closure`, where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Shared anew each time: loading a state replaces groups and state of this optimiser alone.
        self._muon.param_groups = [group for group in self.param_groups if "ns_steps" in group]
        self._adamw.param_groups = [group for group in self.param_groups if "ns_steps" not in group]
        for part in (self._muon, self._adamw):
            part.state = self.state
            part.step()
        return loss


@options
class MuonOptions(Options):
    """`momentum`, `nesterov` and `ns_steps` (Newton-Schulz iterations) as torch.optim.Muon has them;
    `adjust_lr_fn`: how the step of a matrix is scaled by its sides."""

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"


@OPTIMIZERS.register("muon")
class Muon(OptimizerBuilder):
    """Muon for the matrices of the blocks, AdamW for the rest."""

    Options = MuonOptions
    needs = "whole matrices"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(f"training.optim: 'muon' needs torch 2.9 or newer; this is torch {torch.__version__}")

    @property
    def label(self) -> str:
        return "muon with adamw"

    def build(self, parameters: Sequence[TrainedParameter], settings: OptimizerSettings) -> MuonWithAdamW:
        rest = [entry for entry in parameters if not entry.matrix]
        groups = [
            {"params": [entry.parameter for entry in rest if entry.decays], "weight_decay": settings.weight_decay},
            {"params": [entry.parameter for entry in rest if not entry.decays], "weight_decay": 0.0},
        ]
        return MuonWithAdamW(
            [entry.parameter for entry in parameters if entry.matrix],
            [group for group in groups if group["params"]],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
            eps=settings.eps,
            muon=asdict(self.options),
        )
