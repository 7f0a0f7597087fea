"""LightNet: linear attention whose state is a running softmax average (Qin et al. 2024, arXiv 2405.21022).

    Z_t = logsumexp_{s <= t} k_s,   S_t = diag(exp(Z_{t-1} - Z_t)) S_{t-1} + exp(k_t - Z_t) v_t^T
    o_t = (silu(q_t) / sqrt(K))^T S_t,   y_t = W_o [ RMSNorm(o_t) * silu(W_2 W_1 x_t) ]

A row of the state is the average of all values so far, weighted with the softmax over time of one key channel: decay
and key are one, and no gate is learned besides the key. The norm runs over all heads together.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.precision import state_dtype
from ...ops.softmax_average import softmax_average
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..norms import GatedRMSNorm
from ..state import LayerState
from .base import MixerCost, divide
from .linear_heads import HeadSizes, LinearHeadsMixer


@options
class LightNetOptions(Options):
    """num_heads: None takes the config's. expand_ratio: K, rows of each head's state (None: hidden_size / heads).
    gate_low_rank_dim: between the two matrices of the output gate."""

    num_heads: int | None = None
    expand_ratio: int | None = None
    use_short_conv: bool = False
    conv_size: int = 4
    gate_low_rank_dim: int = 128
    output_norm_eps: float = 1e-6
    output_norm_affine: bool = True


@MIXERS.register("lightnet")
class LightNet(LinearHeadsMixer):
    """LightNet; `k_proj` makes the logits of the softmax over time."""

    Options = LightNetOptions
    label: ClassVar[str] = "LightNet"

    def __init__(self, config: Any, options: LightNetOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        if options.use_short_conv:
            self.build_short_convs(options.conv_size, activation=None)
        self.gate_proj = nn.Sequential(
            nn.Linear(config.hidden_size, options.gate_low_rank_dim, bias=False),
            nn.Linear(options.gate_low_rank_dim, self.sizes.value_dim, bias=False),
        )
        self.o_norm = GatedRMSNorm(self.sizes.value_dim, options.output_norm_eps, affine=options.output_norm_affine)

    @classmethod
    def head_sizes(cls, config: Any, options: LightNetOptions) -> HeadSizes:
        heads = options.num_heads or config.num_attention_heads
        width = divide(config.hidden_size, heads, "num_attention_heads", "hidden_size")
        for name in ("expand_ratio", "conv_size", "gate_low_rank_dim"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise ConfigError(f"mixer lightnet: {name} {value} is not allowed; use an integer >= 1")
        return HeadSizes(heads, heads, options.expand_ratio or width, width)

    @classmethod
    def effective(cls, config: Any, options: LightNetOptions) -> dict[str, Any]:
        return {**super().effective(config, options), "expand_ratio": cls.head_sizes(config, options).head_k_dim}

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.sizes.split(*self.project(x, layout, state))
        logits = k.to(state_dtype(k))
        if layout.mask is not None:
            logits = logits.masked_fill(~layout.mask[..., None, None], -torch.inf)  # padding has no weight
        out = state.advance(softmax_average, F.silu(q), logits, v, layout=layout, states=2)
        return self.o_proj(self.o_norm(out.flatten(2), self.gate_proj(x)))

    def cost(self, seq_len: int) -> MixerCost:
        """The state also holds the logsumexp of each row, H K numbers, which no product touches."""
        base = super().cost(seq_len)
        return MixerCost(base.mixing_flops, base.decode_flops, base.state_bytes + 4 * self.sizes.key_dim)
