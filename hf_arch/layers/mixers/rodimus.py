"""Rodimus: one wide head whose decay is chosen with a temperature (He et al. 2024, arXiv 2410.06577).

    u = W_u x, z = W_z x,   s = silu(conv(u)),   g = softplus(W_g s + b), tau = sigmoid(W_t s + b)
    k = (W_k s) / |W_k s| g^tau,   v = sigmoid(W_2 W_1 u + b) u,   S_t = diag(exp(-g_t tau_t)) S_{t-1} + k_t v_t^T
    o_t = (W_q s_t / sqrt(N))^T S_t + w s_t,   y_t = W_o RMSNorm(o_t * silu(z_t))

The state is N x 2 D for the whole layer: u is twice as wide as the model.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.linear_attention import linear_attention
from ...ops.norm import silu_gated_rms_norm
from ...ops.precision import state_dtype
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..fp32 import Fp32BiasLinear
from ..initial import FLA
from ..layout import SequenceLayout
from ..norms import ArchRMSNorm
from ..short_conv import ShortConvolution
from ..state import LayerState
from .base import MixerCost, RecurrentMixer
from .mamba import init_step_bias

_GATE_GAIN = 2**-2.5
_LOWEST = -40.0
"""Below it log softplus(x) - x is under 1e-17."""


@options
class RodimusOptions(Options):
    """expand_ratio: N, rows of the state. input_gate_low_rank: None is max(hidden_size // 64, 16). k_norm_eps: the
    least length of a key. dt_min, dt_max, dt_init_floor shape the initial gates."""

    expand_ratio: int = 64
    input_gate_low_rank: int | None = None
    use_short_conv: bool = True
    conv_size: int = 4
    k_norm_eps: float = 1e-12
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_init_floor: float = 0.0


class GatedFirstRMSNorm(ArchRMSNorm):
    """RMSNorm(x * silu(gate))."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return silu_gated_rms_norm(x, self.weight, gate, self.eps, gate_first=True)


@MIXERS.register("rodimus")
class Rodimus(RecurrentMixer):
    """Rodimus' mixer, which is the whole block of the model without attention."""

    inits: ClassVar = FLA
    Options = RodimusOptions
    cache_kind: ClassVar = "recurrent+conv"
    label: ClassVar[str] = "Rodimus"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("residual_weight",)

    def __init__(self, config: Any, options: RodimusOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        width, inner, rows = config.hidden_size, 2 * config.hidden_size, options.expand_ratio
        self.inner = inner
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        if options.use_short_conv:
            self.conv = ShortConvolution(inner, options.conv_size, bias=True)
        self.q_proj = nn.Linear(inner, rows, bias=False)
        self.k_proj = nn.Linear(inner, rows, bias=False)
        self.g_gate_proj = Fp32BiasLinear(inner, rows)
        self.tau_gate_proj = Fp32BiasLinear(inner, rows)
        rank = self.gate_rank(config, options)
        self.i_gate_proj = nn.Sequential(nn.Linear(inner, rank, bias=False), nn.Linear(rank, inner))
        self.residual_weight = nn.Parameter(torch.empty(inner))
        self.norm = GatedFirstRMSNorm(inner, config.norm_eps)
        self.down_proj = nn.Linear(inner, width, bias=False)

    @staticmethod
    def gate_rank(config: Any, options: RodimusOptions) -> int:
        """The width between the two matrices of the input gate."""
        return options.input_gate_low_rank or max(config.hidden_size // 64, 16)

    @classmethod
    def validate(cls, config: Any, options: RodimusOptions) -> None:
        for name in ("expand_ratio", "conv_size", "input_gate_low_rank"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise ConfigError(f"mixer rodimus: {name} {value} is not allowed; use an integer >= 1")

    @classmethod
    def effective(cls, config: Any, options: RodimusOptions) -> dict[str, Any]:
        values = super().effective(config, options)
        for name in ("dt_min", "dt_max", "dt_init_floor"):
            del values[name]
        return {**values, "input_gate_low_rank": cls.gate_rank(config, options)}

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        up, gate = self.up_proj(x), self.gate_proj(x)
        shifted = self.conv(up, layout, state) if self.options.use_short_conv else up
        dtype = state_dtype(x)
        gate_logits = self.g_gate_proj(shifted).to(dtype)
        g = F.softplus(gate_logits)
        tau = self.tau_gate_proj(shifted).to(dtype).sigmoid()
        key = F.normalize(self.k_proj(shifted).to(dtype), dim=-1, eps=self.options.k_norm_eps)
        key = key * (tau * log_softplus(gate_logits)).exp()
        value = layout.zero_padding(self.i_gate_proj(up).sigmoid() * up)
        out = state.advance(
            linear_attention,
            self.q_proj(shifted).unsqueeze(2),
            layout.zero_padding(key).unsqueeze(2),
            value.unsqueeze(2),
            layout.zero_padding(-g * tau).unsqueeze(2),
            layout=layout,
        )
        return self.down_proj(self.norm(torch.addcmul(out.squeeze(2), shifted, self.residual_weight), gate))

    def cost(self, seq_len: int) -> MixerCost:
        """k v^T into the state and q^T S out of it: 8 N D a token; 2 N D fp32 numbers and the window."""
        entries = self.inner * self.options.expand_ratio
        per_token, window = 4 * entries, 0
        if self.options.use_short_conv:
            per_token += self.conv.flops(1)
            window = self.conv.state_bytes(cache_element_bytes(self.config))
        return MixerCost(mixing_flops=per_token * seq_len, decode_flops=per_token, state_bytes=4 * entries + window)

    def init_weights(self) -> None:
        init.ones_(self.residual_weight)
        for linear in (self.g_gate_proj, self.tau_gate_proj, *self.i_gate_proj):
            bound = _GATE_GAIN * math.sqrt(6 / (linear.in_features + linear.out_features))  # xavier
            init.uniform_(linear.weight, -bound, bound)
        init_step_bias(self.g_gate_proj.bias, self.options)
        chosen = torch.empty_like(self.tau_gate_proj.bias).uniform_(1 / 16, 0.9)
        init.copy_(self.tau_gate_proj.bias, torch.logit(chosen))


def log_softplus(x: Tensor) -> Tensor:
    """log softplus(x); x itself far below 0, where softplus ends at 0 and its logarithm's gradient would be NaN."""
    return torch.where(x < _LOWEST, x, F.softplus(x.clamp_min(_LOWEST)).log())
