"""HGRN2: a gated linear RNN whose state is expanded to a matrix (Qin et al. 2024, arXiv 2404.07904).

    f_t = gamma + (1 - gamma) sigmoid(W_f x_t),   S_t = diag(f_t) S_{t-1} + (1 - f_t) i_t^T
    o_t = (silu(W_q x_t) / sqrt(K))^T S_t,        y_t = W_o RMSNorm(o_t)

The forget gate is the key: what a row of the state forgets is what it takes in. The lower bound gamma of the gates
grows with depth (`components/lower_bounds.py`); the norm runs over all heads together.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.linear_attention import linear_attention
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..lower_bounds import LowerBoundsSpec, bounded_complement, bounded_log_gate
from ..norms import ArchRMSNorm
from ..state import LayerState
from .base import divide
from .linear_heads import HeadSizes, LinearHeadsMixer, kv_heads, repeat_kv_heads


@options
class HGRN2Options(Options):
    """expand_ratio: K, rows of each head's state (None: hidden_size / heads). num_heads and num_kv_heads (heads with
    gates and inputs of their own): None takes the config's."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    expand_ratio: int | None = None
    use_short_conv: bool = False
    conv_size: int = 4
    use_lower_bound: bool = True
    output_norm_eps: float = 1e-5
    output_norm_affine: bool = True


@MIXERS.register("hgrn2")
class GatedStateExpansion(LinearHeadsMixer):
    """HGRN2; `k_proj` makes the forget gates and `v_proj` the inputs."""

    Options = HGRN2Options
    label: ClassVar[str] = "HGRN2"

    def __init__(self, config: Any, options: HGRN2Options, layer_idx: int):
        super().__init__(config, options, layer_idx)
        if options.use_short_conv:
            self.build_short_convs(options.conv_size, activation=None)
        self.o_norm = ArchRMSNorm(self.sizes.value_dim, options.output_norm_eps, options.output_norm_affine)

    @classmethod
    def head_sizes(cls, config: Any, options: HGRN2Options) -> HeadSizes:
        heads, own = kv_heads(config, options)
        width = divide(config.hidden_size, heads, "num_attention_heads", "hidden_size")
        if options.expand_ratio is not None and options.expand_ratio < 1:
            raise ConfigError(f"mixer hgrn2: expand_ratio {options.expand_ratio} is not allowed; use an integer >= 1")
        return HeadSizes(heads, own, options.expand_ratio or width, width)

    @classmethod
    def shared(cls, config: Any, options: HGRN2Options) -> LowerBoundsSpec | None:
        if not options.use_lower_bound:
            return None
        return LowerBoundsSpec(config.num_hidden_layers, cls.head_sizes(config, options).kv_key_dim)

    @classmethod
    def effective(cls, config: Any, options: HGRN2Options) -> dict[str, Any]:
        return {**super().effective(config, options), "expand_ratio": cls.head_sizes(config, options).head_k_dim}

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, f, i = self.project(x, layout, state)
        bound = context.shared if self.layer_idx > 0 else None  # gamma_0 = 0
        q, k, v = self.sizes.split(F.silu(q), layout.zero_padding(bounded_complement(f, bound)), i)
        decay = layout.zero_padding(bounded_log_gate(f, bound))
        out = state.advance(
            linear_attention,
            q,
            k,
            v,
            repeat_kv_heads(self.sizes, decay.unflatten(-1, (self.sizes.num_kv_heads, -1))),
            layout=layout,
        )
        return self.o_proj(self.o_norm(out.flatten(2)))
