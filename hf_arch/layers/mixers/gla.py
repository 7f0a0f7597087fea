"""Gated linear attention (Yang et al. 2023, arXiv 2312.06635).

    S_t = diag(alpha_t) S_{t-1} + k_t v_t^T,   o_t = (q_t / sqrt(K))^T S_t,   alpha_t = sigmoid(W_2 W_1 x_t + b)^(1/16)
    y_t = W_o [ RMSNorm(o_t) * silu(W_g x_t) ]

The state is one K x V matrix a head whose rows decay by a gate that depends on the token.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.linear_attention import linear_attention
from ...ops.precision import state_dtype
from ..contract import LayerContext
from ..fp32 import Fp32BiasLinear
from ..layout import SequenceLayout
from ..state import LayerState
from .linear_heads import FeatureMapMixer, repeat_kv_heads


@options
class GLAOptions(Options):
    """num_heads and num_kv_heads: None takes the config's; `gate_logit_normalizer` is the 16 of the formula."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    expand_k: float | int = 0.5
    expand_v: float | int = 1.0
    feature_map: str | None = None
    use_short_conv: bool = False
    conv_size: int = 4
    use_output_gate: bool = True
    use_key_gate: bool = True
    gate_logit_normalizer: int = 16
    gate_low_rank_dim: int = 16
    clamp_min: float | None = None
    gate_activation: str = "silu"
    output_norm_affine: bool = True


@MIXERS.register("gla")
class GatedLinearAttention(FeatureMapMixer):
    """GLA; `use_key_gate=False` is linear attention without decay, for ablations."""

    Options = GLAOptions
    label: ClassVar[str] = "GLA"

    def __init__(self, config: Any, options: GLAOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        if options.use_short_conv:
            self.build_short_convs(options.conv_size)
        self.build_output(options.use_output_gate, options.gate_activation, affine=options.output_norm_affine)
        if options.use_key_gate:
            self.gk_proj = nn.Sequential(
                nn.Linear(config.hidden_size, options.gate_low_rank_dim, bias=False),
                Fp32BiasLinear(options.gate_low_rank_dim, self.sizes.kv_key_dim),
            )

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.mapped_heads(x, layout, state)
        out = state.advance(linear_attention, q, k, v, self.log_decay(x, layout), layout=layout)
        return self.read_out(x, out)

    def log_decay(self, x: Tensor, layout: SequenceLayout) -> Tensor | None:
        """log alpha, fp32 [B, T, H, K]; 0 at padding."""
        if not self.options.use_key_gate:
            return None
        gate = F.logsigmoid(self.gk_proj(x).to(state_dtype(x))) / self.options.gate_logit_normalizer
        if self.options.clamp_min is not None:
            gate = gate.clamp_min(self.options.clamp_min)
        gate = layout.zero_padding(gate).unflatten(-1, (self.sizes.num_kv_heads, self.sizes.head_k_dim))
        return repeat_kv_heads(self.sizes, gate)
