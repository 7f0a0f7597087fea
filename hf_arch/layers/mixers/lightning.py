"""Lightning attention (Qin et al. 2024, arXiv 2401.04658; MiniMax-01, arXiv 2501.08313): linear attention with a fixed
decay for each head and layer.

    q, k, v = silu(W x),   S_t = lambda S_{t-1} + k_t v_t^T,   o_t = q_t^T S_t
    lambda = exp(-2^(-8 h / H) (1 - l / (L - 1) + 1e-5)),   y_t = W_o [ RMSNorm(o_t) * sigmoid(W_g x_t) ]

for heads h = 1..H and layers l = 0..L-1: the deeper the layer, the longer it remembers. The norm is over all heads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.linear_attention import linear_attention
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..norms import GatedRMSNorm
from ..state import LayerState
from .base import CacheKind
from .linear_heads import HeadSizes, LinearHeadsMixer, square_head_sizes


@options
class LightningOptions(Options):
    """num_heads and head_dim: None takes the config's."""

    num_heads: int | None = None
    head_dim: int | None = None
    output_norm_eps: float = 1e-6


@MIXERS.register("lightning")
class LightningAttention(LinearHeadsMixer):
    """See above."""

    Options = LightningOptions
    cache_kind: ClassVar[CacheKind] = "recurrent"
    label: ClassVar[str] = "Lightning"

    def __init__(self, config: Any, options: LightningOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.g_proj = nn.Linear(config.hidden_size, self.sizes.value_dim, bias=False)
        self.o_norm = GatedRMSNorm(self.sizes.value_dim, options.output_norm_eps, "sigmoid")

    @classmethod
    def head_sizes(cls, config: Any, options: LightningOptions) -> HeadSizes:
        return square_head_sizes(config, options)

    @classmethod
    def effective(cls, config: Any, options: LightningOptions) -> dict[str, Any]:
        return {**super().effective(config, options), "head_dim": cls.head_sizes(config, options).head_k_dim}

    def log_decay(self, device: torch.device) -> Tensor:
        """log lambda, fp32 [H]; computed at use, since a buffer would need re-initialising after each load."""
        heads = torch.arange(1, self.sizes.num_heads + 1, device=device, dtype=torch.float32)
        depth = 1 - self.layer_idx / (self.config.num_hidden_layers - 1 + 1e-5) + 1e-5
        return -depth * torch.exp2(-8 * heads / self.sizes.num_heads)

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.sizes.split(*(F.silu(part) for part in self.project(x, layout, state)))
        decay = self.log_decay(x.device)
        if layout.order is not None:  # padding after valid tokens must not decay
            decay = layout.zero_padding(decay.expand(*x.shape[:2], -1))
        out = state.advance(linear_attention, q, layout.zero_padding(k), v, decay, scale=1.0, layout=layout)
        return self.o_proj(self.o_norm(out.flatten(2), self.g_proj(x)))
