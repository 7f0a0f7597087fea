"""Gated slot attention: softmax attention to a bounded memory that forgets (Zhang et al. 2024, arXiv 2409.07146).

    f_t = sigmoid(W_f x_t)^(1/8)
    K_t = K_{t-1} diag(f_t) + k_t (1 - f_t)^T,   V_t = diag(f_t) V_{t-1} + (1 - f_t) v_t^T
    o_t = V_t^T softmax(K_t^T q_t),   y_t = W_o RMSNorm(silu(o_t)),   q, k, v = silu(W x)

with M slots a head: two matrix states, of keys and of values.
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
from ...ops.slots import gated_slot_attention
from ..contract import LayerContext
from ..feature_maps import FEATURE_MAPS, FeatureMap
from ..layout import SequenceLayout
from ..norms import ArchRMSNorm
from ..state import LayerState
from .linear_heads import LinearHeadsMixer, repeat_kv_heads


@options
class GSAOptions(Options):
    """num_heads and num_kv_heads: None takes the config's; `gate_logit_normalizer` is the 8 of the formula; the
    output norm runs over all heads together."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    num_slots: int = 64
    expand_k: float | int = 1.0
    expand_v: float | int = 1.0
    feature_map: str = "silu"
    use_short_conv: bool = False
    conv_size: int = 4
    gate_logit_normalizer: float | int = 8
    output_norm_eps: float = 1e-5
    output_norm_affine: bool = True


@MIXERS.register("gsa")
class GatedSlotAttention(LinearHeadsMixer):
    """GSA."""

    Options = GSAOptions
    label: ClassVar[str] = "GSA"

    def __init__(self, config: Any, options: GSAOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        if options.use_short_conv:
            self.build_short_convs(options.conv_size)
        self.f_proj = nn.Linear(config.hidden_size, self.sizes.num_kv_heads * options.num_slots, bias=False)
        self.feature_map: FeatureMap = FEATURE_MAPS.get(options.feature_map, "feature_map")(self.sizes.head_k_dim)
        self.o_norm = ArchRMSNorm(self.sizes.value_dim, options.output_norm_eps, options.output_norm_affine)

    @classmethod
    def validate(cls, config: Any, options: GSAOptions) -> None:
        super().validate(config, options)
        FEATURE_MAPS.get(options.feature_map, "feature_map")
        if options.num_slots < 1:
            raise ConfigError(f"mixer gsa: num_slots {options.num_slots} is not allowed; use an integer >= 1")
        if options.gate_logit_normalizer <= 0:
            raise ConfigError(
                f"mixer gsa: gate_logit_normalizer {options.gate_logit_normalizer} is not allowed; use a number > 0"
            )

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.sizes.split(*self.project(x, layout, state))
        forget = F.logsigmoid(self.f_proj(x).to(state_dtype(x))) / self.options.gate_logit_normalizer
        forget = layout.zero_padding(forget).unflatten(-1, (self.sizes.num_kv_heads, self.options.num_slots))
        forget = repeat_kv_heads(self.sizes, forget)
        out = state.advance(
            gated_slot_attention,
            self.feature_map(q),
            self.feature_map(k),
            F.silu(v),
            -torch.expm1(forget),  # nothing is written at padding
            forget,
            layout=layout,
            states=2,
        )
        return self.o_proj(self.o_norm(F.silu(out.flatten(2))))

    def state_entries(self) -> int:
        """H M (F + V) fp32 numbers, F the features of a key."""
        return self.sizes.num_heads * self.options.num_slots * (self.feature_map.feature_dim + self.sizes.head_v_dim)

    def init_weights(self) -> None:
        self.feature_map.init_weights()
