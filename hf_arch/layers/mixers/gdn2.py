"""Gated DeltaNet 2: separate gates for erasing and for writing (arXiv 2605.22791).

    S' = diag(exp g_t) S_{t-1},   S_t = S' + k_t (w_t * v_t - S'^T (e_t * k_t))^T,   o_t = (q_t / sqrt(K))^T S_t
    g_t = -exp(A) softplus(W_2 W_1 x_t + b),   e_t = sigmoid(W_e x_t),   w_t = sigmoid(W_w x_t)
    y_t = W_o [ RMSNorm(o_t) * sigmoid(W_4 W_3 x_t + c) ]

with q, k, v = silu(conv(W x)) and q, k of length one; e has a number for each key channel, w for each value channel.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.options import options
from ...core.registry import MIXERS
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..state import LayerState
from .delta_heads import DeltaHeadsMixer, DeltaHeadsOptions, low_rank


@options
class GDN2Options(DeltaHeadsOptions):
    """num_heads (of queries and keys) and head_dim (K): None takes the config's; V = expand_v K; num_v_heads: None =
    num_heads. dt_* shape the initial decays."""


@MIXERS.register("gdn2")
class GatedDeltaNet2(DeltaHeadsMixer):
    """Gated DeltaNet 2, with grouped values; `b_proj` makes the erasing gates."""

    Options = GDN2Options
    label: ClassVar[str] = "GDN2"

    def __init__(self, config: Any, options: GDN2Options, layer_idx: int):
        super().__init__(config, options, layer_idx)
        sizes, width = self.sizes, config.hidden_size
        self.f_proj = low_rank(width, sizes.head_v_dim, sizes.key_dim)
        self.b_proj = nn.Linear(width, sizes.key_dim, bias=False)
        self.w_proj = nn.Linear(width, sizes.value_dim, bias=False)
        self.build_decay(sizes.num_kv_heads, sizes.head_k_dim)
        self.build_low_rank_output()

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.heads(x, layout, state)
        erase = self.strength(self.b_proj(x)).view_as(k) * k
        g = self.log_decay(self.f_proj(x), layout)
        q, k, g, erase = (self.sizes.per_value_head(part) for part in (q, k, g, erase))
        v = self.w_proj(x).sigmoid().view_as(v) * v
        return self.read_out(x, self.erase_and_write(q, k, v, g, g.exp() * erase, layout, state))

    def lowest_rate(self) -> float:
        return 1.0
