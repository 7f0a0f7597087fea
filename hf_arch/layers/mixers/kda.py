"""Kimi Delta Attention: the gated delta rule with a decay for each key channel (Kimi Team 2025, arXiv 2510.26692).

    S' = diag(exp g_t) S_{t-1},   S_t = S' + beta_t k_t (v_t - S'^T k_t)^T,   o_t = (q_t / sqrt(K))^T S_t
    g_t = -exp(A) softplus(W_2 W_1 x_t + b),   beta_t = sigmoid(W_b x_t)
    y_t = W_o [ RMSNorm(o_t) * sigmoid(W_4 W_3 x_t + c) ]

with q, k, v = silu(conv(W x)) and q, k of length one. With `lower_bound` c < 0 the log decay is
g_t = c sigmoid(exp(A) (W_2 W_1 x_t + b)).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import options
from ...core.registry import MIXERS
from ...ops.delta_rule import delta_rule
from ...ops.precision import state_dtype
from ...ops.softplus_decay import biased
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..state import LayerState
from .delta_heads import DeltaHeadsMixer, DeltaHeadsOptions, low_rank


@options
class KDAOptions(DeltaHeadsOptions):
    """num_heads (of queries and keys) and head_dim (K): None takes the config's; V = expand_v K; num_v_heads: None =
    num_heads. lower_bound: what no log decay is below; gate_bias: c; dt_* shape the initial decays."""

    lower_bound: float | int | None = None
    gate_bias: bool = True


@MIXERS.register("kda")
class KimiDeltaAttention(DeltaHeadsMixer):
    """KDA, with grouped values."""

    Options = KDAOptions
    label: ClassVar[str] = "KDA"

    def __init__(self, config: Any, options: KDAOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        sizes, width = self.sizes, config.hidden_size
        self.f_proj = low_rank(width, sizes.head_v_dim, sizes.num_heads * sizes.head_k_dim)
        self.b_proj = nn.Linear(width, self.strengths(), bias=False)
        self.build_decay(sizes.num_heads, sizes.head_k_dim)
        self.build_low_rank_output(options.gate_bias)

    def strengths(self) -> int:
        """How many beta a token has."""
        return self.sizes.num_heads

    @classmethod
    def validate(cls, config: Any, options: KDAOptions) -> None:
        super().validate(config, options)
        if options.lower_bound is not None and not options.lower_bound < 0:
            raise ConfigError(
                f"lower_bound: {options.lower_bound} is not allowed; use a number < 0 (a log decay) or null"
            )

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        rewrites_keys = type(self).written_key is not KimiDeltaAttention.written_key
        if rewrites_keys:
            q, k, v = self.heads(x, layout, state)
        else:
            q, k, v, unit_eps = self.heads_for_rule(x, layout, state)
        q, k = self.sizes.per_value_head(q), self.sizes.per_value_head(k)
        beta = self.sizes.per_value_head(self.strength(self.b_proj(x)))
        g, bound = self.log_decay(self.f_proj(x), layout), self.options.lower_bound
        if rewrites_keys:
            written = beta.unsqueeze(-1) * self.written_key(x, k, layout, state)
            out = self.erase_and_write(q, written, v, g, g.exp() * k, layout, state, bound)
        else:
            given = q, k, v, beta, g
            out = state.advance(delta_rule, *given, min_log_decay=bound, unit_eps=unit_eps, layout=layout)
        return self.read_out(x, out)

    def written_key(self, x: Tensor, k: Tensor, layout: SequenceLayout, state: LayerState) -> Tensor:
        """What of the keys [B, T, Hv, K] is written."""
        return k

    def log_decay(self, logits: Tensor, layout: SequenceLayout) -> Tensor:
        bound = self.options.lower_bound
        if bound is None:
            return super().log_decay(logits, layout)
        rate = self.A_log.to(state_dtype(logits)).exp().unsqueeze(-1)
        return layout.zero_padding(bound * (rate * biased(logits, self.A_log, self.dt_bias)).sigmoid())

    def lowest_rate(self) -> float:
        return 1.0

    def init_weights(self) -> None:
        super().init_weights()
        if self.options.lower_bound is not None:
            init.zeros_(self.A_log)  # as a factor inside the sigmoid it would saturate it
