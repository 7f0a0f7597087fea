"""Lower bounds of forget gates that grow with depth (Qin et al. 2023, HGRN, arXiv 2311.04823).

    gamma_l = sum_{1 <= m <= l} softmax(Gamma)_m over the layers m,      f = gamma_l + (1 - gamma_l) sigmoid(x)

Layer 0 has no bound and upper layers forget less. One parameter for all layers: each bound depends on every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..ops.precision import state_dtype
from .mixers.base import SharedParameters


class LowerBounds(SharedParameters):
    """Gamma [L, E]; `forward()` gives gamma [L, E] in fp32."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("logits",)
    keep_fp32: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, num_layers: int, width: int):
        super().__init__()
        self.logits = nn.Parameter(torch.empty(num_layers, width))

    def forward(self) -> Tensor:
        shares = self.logits.softmax(0, dtype=state_dtype(self.logits))
        return shares.cumsum(0) - shares[0]

    def init_weights(self) -> None:
        init.zeros_(self.logits)


@dataclass(frozen=True)
class LowerBoundsSpec:
    """Layers of equal gate width share their bounds; the bound of layer 0 is 0, whatever they are."""

    num_layers: int
    width: int
    first_layer: ClassVar[int] = 1

    def build(self) -> LowerBounds:
        return LowerBounds(self.num_layers, self.width)


def bounded_complement(logits: Tensor, bound: Tensor | None) -> Tensor:
    """1 - f = (1 - gamma) sigmoid(-x) without cancellation, in fp32; `bound` [E] or None for gamma = 0."""
    complement = torch.sigmoid(-logits.to(state_dtype(logits)))
    return complement if bound is None else (1 - bound) * complement


def bounded_log_gate(logits: Tensor, bound: Tensor | None) -> Tensor:
    """log f, in fp32; `bound` [E] or None for gamma = 0."""
    logits = logits.to(state_dtype(logits))
    if bound is None:
        return nn.functional.logsigmoid(logits)
    gate = bound + (1 - bound) * torch.sigmoid(logits)
    return gate.clamp_min(torch.finfo(gate.dtype).tiny).log()
