"""Comba: the delta rule closed by a correction of state and output (Hu et al. 2025, arXiv 2506.02475).

    p_t = sigmoid(d) k_t,   u_t = beta_t (v_t - S_{t-1}^T p_t),   S_t = exp(g_t) S_{t-1} + k_t u_t^T
    o_t = ((q_t - D p_t) / sqrt(K))^T S_t,   y_t = W_o [ RMSNorm(o_t) * sigmoid(W_g x_t) ]
    g_t = -exp(A) softplus(W_a x_t + b),   beta_t = sigmoid(W_b x_t)

with q, k, v = silu(conv(W x)); k, p and the corrected q are scaled to length one. What is erased is read from the state
before its decay, as in the paper and in flash-linear-attention's kernels (its naive form decays first: another model).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.options import options
from ...core.registry import MIXERS
from ...ops.norm import l2_norm
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..state import LayerState
from .delta_heads import DeltaHeadsMixer, DeltaHeadsOptions


@options
class CombaOptions(DeltaHeadsOptions):
    """num_heads (of queries and keys) and head_dim (K): None takes the config's; V = expand_v K; num_v_heads: None =
    num_heads. dt_* shape the initial decays."""

    expand_v: float | int = 2.0


@MIXERS.register("comba")
class Comba(DeltaHeadsMixer):
    """Comba, with grouped values."""

    Options = CombaOptions
    label: ClassVar[str] = "Comba"
    no_weight_decay: ClassVar[tuple[str, ...]] = (*DeltaHeadsMixer.no_weight_decay, "decay", "D")
    keep_fp32: ClassVar[tuple[str, ...]] = (*DeltaHeadsMixer.keep_fp32, "decay", "D")

    def __init__(self, config: Any, options: CombaOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        sizes = self.sizes
        self.a_proj = nn.Linear(config.hidden_size, sizes.num_heads, bias=False)
        self.b_proj = nn.Linear(config.hidden_size, sizes.num_heads, bias=False)
        self.build_decay(sizes.num_heads)
        self.decay = nn.Parameter(torch.empty(sizes.num_kv_heads))
        self.D = nn.Parameter(torch.empty(sizes.num_kv_heads))
        self.build_output(options.use_output_gate, options.gate_activation)

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.plain_heads(x, layout, state)
        p = (k * self.decay.sigmoid().unsqueeze(-1)).to(k.dtype)
        q = (q - p * self.D.unsqueeze(-1)).to(q.dtype)
        q, k, p = (self.sizes.per_value_head(l2_norm(part)) for part in (q, k, p))
        beta = self.strength(self.b_proj(x)).unsqueeze(-1)
        g = self.log_decay(self.a_proj(x), layout)
        return self.read_out(x, self.erase_and_write(q, beta * k, v, g, p, layout, state))

    def init_weights(self) -> None:
        super().init_weights()
        init.ones_(self.decay)
        init.ones_(self.D)
