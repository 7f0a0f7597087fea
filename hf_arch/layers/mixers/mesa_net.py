"""MesaNet: the regression of values on keys over all tokens so far, solved at every token (von Oswald et al. 2025,
arXiv 2506.05233).

    A_t = exp(g_t) A_{t-1} + beta_t k_t k_t^T,   S_t = exp(g_t) S_{t-1} + beta_t k_t v_t^T
    o_t = S_t^T (A_t + diag(lam))^-1 q_t,   y_t = W_o RMSNorm(o_t)  (* silu(W_g x_t))

with q, k = silu(conv(W x)) of length one, v = W x, beta = sigmoid(W_b x + b), g = logsigmoid(W_a x + b) and lam =
softplus(w) + `lambda_min` for each row of a head's state. The paper approximates the solution by conjugate gradients;
here it is exact.
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
from ...ops.mesa import mesa
from ...ops.norm import l2_norm
from ...ops.precision import state_dtype
from ..contract import LayerContext
from ..fp32 import Fp32BiasLinear
from ..layout import SequenceLayout
from ..short_conv import ShortConvolution
from ..state import LayerState
from .base import MixerCost
from .linear_heads import HeadSizes, LinearHeadsMixer, square_head_sizes


@options
class MesaNetOptions(Options):
    """num_heads and head_dim (K, also of values): None takes the config's. lambda_min: what lam is above."""

    num_heads: int | None = None
    head_dim: int | None = None
    conv_size: int = 4
    use_output_gate: bool = False
    lambda_min: float = 0.25


@MIXERS.register("mesa_net")
class MesaNet(LinearHeadsMixer):
    """MesaNet with the exact solution."""

    Options = MesaNetOptions
    label: ClassVar[str] = "Mesa"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("lambda_params",)
    keep_fp32: ClassVar[tuple[str, ...]] = ("lambda_params",)

    def __init__(self, config: Any, options: MesaNetOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        sizes = self.sizes
        self.q_conv = ShortConvolution(sizes.key_dim, options.conv_size, state_index=0)
        self.k_conv = ShortConvolution(sizes.key_dim, options.conv_size, state_index=1)
        self.a_proj = Fp32BiasLinear(config.hidden_size, sizes.num_heads)
        self.b_proj = Fp32BiasLinear(config.hidden_size, sizes.num_heads)
        self.lambda_params = nn.Parameter(torch.empty(sizes.key_dim))
        self.build_output(options.use_output_gate)

    @classmethod
    def head_sizes(cls, config: Any, options: MesaNetOptions) -> HeadSizes:
        return square_head_sizes(config, options)

    @classmethod
    def validate(cls, config: Any, options: MesaNetOptions) -> None:
        super().validate(config, options)
        if options.conv_size < 1:
            raise ConfigError(f"mixer mesa_net: conv_size {options.conv_size} is not allowed; use an integer >= 1")
        if not 0 <= options.lambda_min < math.inf:
            raise ConfigError(f"mixer mesa_net: lambda_min {options.lambda_min} is not allowed; use a number >= 0")

    @classmethod
    def effective(cls, config: Any, options: MesaNetOptions) -> dict[str, Any]:
        values = {**super().effective(config, options), "sizes": cls.head_sizes(config, options)}
        del values["num_heads"], values["head_dim"]
        return values

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.projections(x, state)
        q, k = self.q_conv(q, layout, state), layout.zero_padding(self.k_conv(k, layout, state))
        q, k, v = self.sizes.split(q, k, v)
        dtype = state_dtype(x)
        out = state.advance(
            mesa,
            l2_norm(q),
            l2_norm(k),
            v,
            self.b_proj(x).to(dtype).sigmoid(),
            layout.zero_padding(F.logsigmoid(self.a_proj(x).to(dtype))),
            self.ridge(),
            layout=layout,
            states=2,
        )
        return self.read_out(x, out)

    def ridge(self) -> Tensor:
        """lam [H, K], in the dtype of states."""
        ridge = F.softplus(self.lambda_params.to(state_dtype(self.lambda_params))) + self.options.lambda_min
        return ridge.view(self.sizes.num_heads, -1)

    def cost(self, seq_len: int) -> MixerCost:
        """Products with A and S, and 2/3 K^3 a head and token for the solution; A is a second state of K x K."""
        base, sizes = super().cost(seq_len), self.sizes
        moments = sizes.num_heads * sizes.head_k_dim**2
        extra = 4 * moments + sizes.num_heads * 2 * sizes.head_k_dim**3 // 3
        return MixerCost(base.mixing_flops + seq_len * extra, base.decode_flops + extra, base.state_bytes + 4 * moments)

    def init_weights(self) -> None:
        above = max(1.0 - self.options.lambda_min, 1e-3)
        init.constant_(self.lambda_params, math.log(math.expm1(above)))
