"""Attention with bounded-memory control (Peng et al. 2021, ABC, arXiv 2110.02488).

    w_tj = exp(s_j - logsumexp_{i <= t} s_i),   K_t = sum_{j <= t} w_tj k_j,   V_t = sum_{j <= t} w_tj v_j   (each slot)
    o_t = softmax_M(K_t q_t / sqrt(K)) V_t,     y_t = W_o [ RMSNorm(o_t) * silu(W_g x_t) ]

with rotary queries and keys: each of M slots holds a running softmax average of the keys and values. Its state is the
logsumexp, the slots of keys and those of values.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.precision import state_dtype
from ...ops.rotary import apply_rotary
from ...ops.slots import abc_attention
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..rope_parameters import RotarySpec
from ..state import LayerState
from .base import MixerCost
from .linear_heads import LinearHeadsMixer, repeat_kv_heads


@options
class ABCOptions(Options):
    """num_heads and num_kv_heads: None takes the config's; clamp_min, clamp_max: bounds of the slots' logits (None:
    none)."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    num_slots: int = 64
    expand_k: float | int = 0.5
    expand_v: float | int = 1.0
    use_short_conv: bool = False
    conv_size: int = 4
    use_rope: bool = True
    rope_theta: float | int = 10000.0
    clamp_min: float | int | None = -32
    clamp_max: float | int | None = 32
    use_output_gate: bool = True
    output_norm_affine: bool = True


@MIXERS.register("abc")
class BoundedMemoryAttention(LinearHeadsMixer):
    """ABC with learned slot weights."""

    Options = ABCOptions
    label: ClassVar[str] = "ABC"

    def __init__(self, config: Any, options: ABCOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        if options.use_short_conv:
            self.build_short_convs(options.conv_size)
        self.s_proj = nn.Linear(config.hidden_size, self.sizes.num_kv_heads * options.num_slots, bias=False)
        self.build_output(options.use_output_gate, affine=options.output_norm_affine)

    @classmethod
    def validate(cls, config: Any, options: ABCOptions) -> None:
        head_k_dim = cls.head_sizes(config, options).head_k_dim
        if options.use_rope and head_k_dim % 2:
            raise ConfigError(
                f"mixer abc: expand_k {options.expand_k} gives heads of {head_k_dim} features, an odd number, and "
                "RoPE rotates pairs; change expand_k or num_heads"
            )
        if options.num_slots < 1:
            raise ConfigError(f"mixer abc: num_slots {options.num_slots} is not allowed; use an integer >= 1")

    @classmethod
    def rotary(cls, config: Any, options: ABCOptions) -> RotarySpec | None:
        if not options.use_rope:
            return None
        parameters = {"rope_type": "default", "rope_theta": float(options.rope_theta)}
        return RotarySpec(cls.head_sizes(config, options).head_k_dim, parameters, config.max_position_embeddings)

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.sizes.split(*self.project(x, layout, state))
        rotary = context.position_embeddings
        if rotary is not None:
            q, k = (apply_rotary(part, *rotary, head_axis=2) for part in (q, k))
        logits = self.s_proj(x).to(state_dtype(x))
        if self.options.clamp_min is not None or self.options.clamp_max is not None:
            logits = logits.clamp(self.options.clamp_min, self.options.clamp_max)
        if layout.mask is not None:
            logits = logits.masked_fill(~layout.mask.unsqueeze(-1), -torch.inf)  # padding has no weight
        out = state.advance(
            abc_attention,
            q,
            k,
            v,
            repeat_kv_heads(self.sizes, logits.unflatten(-1, (self.sizes.num_kv_heads, -1))),
            layout=layout,
            states=3,
        )
        return self.read_out(x, out)

    def state_entries(self) -> int:
        """H M (K + V) fp32 numbers."""
        return self.sizes.num_heads * self.options.num_slots * (self.sizes.head_k_dim + self.sizes.head_v_dim)

    def cost(self, seq_len: int) -> MixerCost:
        """The state also holds the logsumexp of each slot, H M numbers, which no product touches."""
        base = super().cost(seq_len)
        logsumexp = 4 * self.sizes.num_heads * self.options.num_slots
        return MixerCost(base.mixing_flops, base.decode_flops, base.state_bytes + logsumexp)
