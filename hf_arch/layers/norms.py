"""Norms, by name: `layernorm` (Ba et al. 2016), `layernorm_nobias`, `rmsnorm` (Zhang & Sennrich 2019),
`rmsnorm_offset`.

Class names contain LayerNorm or RMSNorm because transformers' weight initialisation recognises norms by them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..core.registry import NORMS
from ..ops.compat import is_hooked, parameter_of
from ..ops.norm import rms_norm, sigmoid_gated_rms_norm, silu_gated_rms_norm
from ..ops.one_row import RowKernels
from ..ops.precision import state_dtype
from .activations import ACTIVATIONS
from .contract import Part


@NORMS.register("layernorm")
class ArchLayerNorm(nn.LayerNorm):
    """LayerNorm with weight and bias over the last axis."""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True):
        super().__init__(dim, eps=eps, bias=bias)


@NORMS.register("layernorm_nobias")
class ArchLayerNormNoBias(ArchLayerNorm):
    """LayerNorm with a weight alone."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__(dim, eps, bias=False)


@NORMS.register("rmsnorm")
class ArchRMSNorm(nn.Module):
    """RMSNorm with a weight over the last axis [..., dim]; `affine=False` leaves the weight out."""

    def __init__(self, dim: int, eps: float = 1e-6, affine: bool = True):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"


@NORMS.register("rmsnorm_weightless")
class WeightlessRMSNorm(ArchRMSNorm):
    """RMSNorm without a weight (nanochat, HRM)."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__(dim, eps, affine=False)


@NORMS.register("rmsnorm_offset")
class OffsetRMSNorm(Part):
    """RMSNorm times 1 + weight, with weights that start at 0 (Gemma, Qwen3-Next)."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def init_weights(self) -> None:
        init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        dtype = state_dtype(x)
        return (rms_norm(x.to(dtype), None, self.eps) * (1 + self.weight.to(dtype))).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"


_BY_ROW = (ArchRMSNorm, WeightlessRMSNorm, ArchLayerNorm, ArchLayerNormNoBias)
_WHOLE = (Tensor, nn.Parameter)


class PerHeadRMSNorm(ArchRMSNorm):
    """Each head's RMSNorm, with a weight for every feature of every head: [..., H, K] -> [..., H, K]."""

    def __init__(self, num_heads: int, head_dim: int, eps: float = 1e-6):
        super().__init__(num_heads * head_dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return (rms_norm(x, None, self.eps) * self.weight.view(x.shape[-2:])).to(x.dtype)


def normed(norm: nn.Module, x: Tensor, row: RowKernels | None, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(s, `norm(s)`) of s = x + add, or of x; of one row [1, 1, D] by its kernel, where the norm is a plain one and
    nothing is put around it."""
    done = None if row is None else _normed_row(norm, x, row, add)
    if done is not None:
        return done
    total = x if add is None else x + add
    return total, norm(total)


def _normed_row(norm: nn.Module, x: Tensor, row: RowKernels, add: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if type(norm) not in _BY_ROW or is_hooked(norm) or x.numel() != x.shape[-1]:
        return None
    if add is not None and add.shape != x.shape:
        return None
    weight, bias, width = parameter_of(norm, "weight"), parameter_of(norm, "bias"), x.shape[-1]
    for each in (x, add, weight, bias):
        if each is not None and (type(each) not in _WHOLE or each.dtype != torch.float32 or not each.is_contiguous()):
            return None
    if any(each is not None and each.shape != (width,) for each in (weight, bias)):
        return None
    eps: Any = norm.eps
    if isinstance(norm, ArchRMSNorm):
        return row.rms_norm(x, add, weight, eps)
    return row.layer_norm(x, add, weight, bias, eps)


class AllHeadsRMSNorm(ArchRMSNorm):
    """RMSNorm over all heads of [..., H, K] together, with a weight a channel."""

    def __init__(self, num_heads: int, head_dim: int, eps: float = 1e-6):
        super().__init__(num_heads * head_dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(-2)).view_as(x)


class GatedRMSNorm(ArchRMSNorm):
    """`rms_norm(x) * gate_fn(gate)`: the norm first, the gate after (Yang et al. 2023, GLA's output gate)."""

    def __init__(self, dim: int, eps: float = 1e-6, activation: str = "silu", affine: bool = True):
        super().__init__(dim, eps, affine)
        self.gate_fn = ACTIVATIONS.get(activation, "gate_activation")

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        if self.gate_fn is F.silu:
            return silu_gated_rms_norm(x, self.weight, gate, self.eps)
        if self.gate_fn is torch.sigmoid:
            return sigmoid_gated_rms_norm(x, self.weight, gate, self.eps)
        return rms_norm(x, self.weight, self.eps) * self.gate_fn(gate)


class HeadGroupNorm(nn.GroupNorm):
    """Each head's LayerNorm over its own features, with a weight and a bias for all of them (RWKV's output norm)."""

    def __init__(self, num_heads: int, head_dim: int, eps: float = 1e-5):
        super().__init__(num_heads, num_heads * head_dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H, V] -> [..., H V] in x's dtype."""
        out = F.layer_norm(x.to(state_dtype(x)), x.shape[-1:], eps=self.eps).flatten(-2)
        return torch.addcmul(self.bias, out, self.weight).to(x.dtype)
