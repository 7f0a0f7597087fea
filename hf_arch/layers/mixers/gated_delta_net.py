"""Gated DeltaNet: the delta rule with a scalar decay that depends on the token (Yang et al. 2024, arXiv 2412.06464).

    S' = exp(g_t) S_{t-1},   S_t = S' + beta_t k_t (v_t - S'^T k_t)^T,   o_t = (q_t / sqrt(K))^T S_t
    g_t = -exp(A) softplus(W_a x_t + b),   beta_t = sigmoid(W_b x_t),   y_t = W_o [ RMSNorm(o_t) * silu(W_g x_t) ]

with q, k, v = silu(conv(W x)) and q, k of length one: the decay clears the state at once, the delta rule replaces
single entries. Value heads may outnumber query and key heads (`num_v_heads`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.options import options
from ...core.registry import MIXERS
from ...ops.delta_rule import delta_rule
from ..contract import LayerContext
from ..initial import FLA, init_as_torch
from ..layout import SequenceLayout
from ..state import LayerState
from .delta_heads import DeltaHeadsMixer, DeltaHeadsOptions


@options
class GatedDeltaNetOptions(DeltaHeadsOptions):
    """num_heads (of queries and keys) and head_dim (K): None takes the config's; V = expand_v K; num_v_heads: None =
    num_heads. output_norm_eps: None takes the config's; dt_* shape the initial decays."""

    expand_v: float | int = 2.0
    gate_activation: str = "silu"
    output_norm_eps: float | None = None


@MIXERS.register("gated_delta_net")
class GatedDeltaNet(DeltaHeadsMixer):
    """Gated DeltaNet, with grouped values."""

    Options = GatedDeltaNetOptions
    label: ClassVar[str] = "GDN"
    inits: ClassVar = {**FLA, "official": "that of the published code: convolutions as torch has them"}

    def __init__(self, config: Any, options: GatedDeltaNetOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        heads = self.sizes.num_heads
        self.a_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.b_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.build_decay(heads)
        self.build_output(options.use_output_gate, options.gate_activation, eps=options.output_norm_eps)

    @classmethod
    def effective(cls, config: Any, options: GatedDeltaNetOptions) -> dict[str, Any]:
        eps = config.norm_eps if options.output_norm_eps is None else options.output_norm_eps
        return {**super().effective(config, options), "output_norm_eps": eps}

    def init_weights(self) -> None:
        super().init_weights()
        if self.init_policy == "official" and self.options.use_short_conv:
            for conv in (self.q_conv, self.k_conv, self.v_conv):
                init_as_torch(conv)

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v, unit_eps = self.heads_for_rule(x, layout, state)
        out = state.advance(
            delta_rule,
            self.sizes.per_value_head(q),
            self.sizes.per_value_head(k),
            v,
            self.strength(self.b_proj(x)),
            self.log_decay(self.a_proj(x), layout).squeeze(-1),
            unit_eps=unit_eps,
            layout=layout,
        )
        return self.read_out(x, out)
