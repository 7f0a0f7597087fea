"""DeltaNet: linear attention that corrects its state instead of only adding to it (Schlag et al. 2021, arXiv
2102.11174; Yang et al. 2024, arXiv 2406.06484).

    S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T,   o_t = (q_t / sqrt(K))^T S_t,   beta_t = sigmoid(W_b x_t)
    q, k, v = silu(conv(W x)),   q and k of length one,   y_t = W_o RMSNorm(o_t)

A key that comes again replaces its value. With `allow_neg_eigval` beta lies in (0, 2): a state can change sign, which
state tracking needs (Grazzi et al. 2024, arXiv 2411.12537).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.delta_rule import delta_rule
from ...ops.norm import l2_norm
from ...ops.precision import state_dtype
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..state import LayerState
from .linear_heads import LinearHeadsMixer, repeat_kv_heads


@options
class DeltaNetOptions(Options):
    """num_heads and num_kv_heads: None takes the config's. `qk_norm` "sum" divides by the sum of magnitudes
    (Schlag et al. 2021)."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    expand_k: float | int = 1.0
    expand_v: float | int = 1.0
    use_short_conv: bool = True
    conv_size: int = 4
    use_beta: bool = True
    use_output_gate: bool = False
    gate_activation: str = "silu"
    qk_activation: Literal["silu", "relu", "elu", "identity"] = "silu"
    qk_norm: Literal["l2", "sum"] = "l2"
    allow_neg_eigval: bool = False


@MIXERS.register("delta_net")
class DeltaNet(LinearHeadsMixer):
    """The delta rule without decay; grouped keys and values share their strength beta."""

    Options = DeltaNetOptions
    label: ClassVar[str] = "DeltaNet"
    state_products: ClassVar[int] = 3

    def __init__(self, config: Any, options: DeltaNetOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        if options.use_short_conv:
            self.build_short_convs(options.conv_size)
            if options.qk_activation != "silu":
                self.q_conv.activation = self.k_conv.activation = None
        if options.use_beta:
            self.b_proj = nn.Linear(config.hidden_size, self.sizes.num_kv_heads, bias=False)
        self.build_output(options.use_output_gate, options.gate_activation)

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.sizes.split(*self.activate(*self.project(x, layout, state)))
        q, k = self.normalise(q), layout.zero_padding(self.normalise(k))
        out = state.advance(delta_rule, q, k, v, self.strength(x), layout=layout)
        return self.read_out(x, out)

    def activate(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The feature map of queries and keys, and SiLU on the values; a short convolution brings its own SiLU."""
        kind, convolved = self.options.qk_activation, self.options.use_short_conv
        if kind == "relu":
            q, k = F.relu(q), F.relu(k)
        elif kind == "elu":
            q, k = F.elu(q) + 1.0, F.elu(k) + 1.0
        elif kind == "silu" and not convolved:
            q, k = F.silu(q), F.silu(k)
        return q, k, v if convolved else F.silu(v)

    def normalise(self, x: Tensor) -> Tensor:
        """Queries or keys [B, T, H, K] with a length (or, for "sum", a sum of magnitudes) of one."""
        return l2_norm(x) if self.options.qk_norm == "l2" else F.normalize(x, p=1, dim=-1, eps=1e-6)

    def strength(self, x: Tensor) -> Tensor:
        """beta, fp32 [B, T, H]."""
        heads = self.sizes.num_kv_heads
        dtype = state_dtype(x)
        if self.options.use_beta:
            beta = self.b_proj(x).to(dtype).sigmoid()
        else:
            beta = x.new_ones(*x.shape[:2], heads, dtype=dtype)
        return repeat_kv_heads(self.sizes, 2.0 * beta if self.options.allow_neg_eigval else beta)
