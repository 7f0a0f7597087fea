"""HGRN: a gated linear RNN with one state number a channel (Qin et al. 2023, arXiv 2311.04823).

    f_t = gamma + (1 - gamma) sigmoid(W_f x_t),   h_t = f_t h_{t-1} + (1 - f_t) silu(W_i x_t)
    y_t = W_o [ RMSNorm(h_t) * silu(W_g x_t) ]

The lower bound gamma of the forget gates grows with depth (`components/lower_bounds.py`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.elementwise import hgrn_scan
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..initial import FLA
from ..layout import SequenceLayout
from ..lower_bounds import LowerBoundsSpec, bounded_complement
from ..norms import GatedRMSNorm
from ..short_conv import ShortConvolution
from ..state import LayerState
from .base import CacheKind, MixerCost, RecurrentMixer


@options
class HGRNOptions(Options):
    """expand_ratio: channels of the state over hidden_size. The convolutions act on the inputs of both gates."""

    expand_ratio: float | int = 1
    use_short_conv: bool = False
    conv_size: int = 4
    use_lower_bound: bool = True
    output_norm_affine: bool = True


@MIXERS.register("hgrn")
class HierarchicallyGatedRNN(RecurrentMixer):
    """HGRN."""

    inits: ClassVar = FLA
    Options = HGRNOptions
    cache_kind: ClassVar[CacheKind] = "recurrent+conv"
    label: ClassVar[str] = "HGRN"

    def __init__(self, config: Any, options: HGRNOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        width, inner = config.hidden_size, self.inner_size(config, options)
        self.inner = inner
        self.i_proj = nn.Linear(width, inner, bias=False)
        self.f_proj = nn.Linear(width, inner, bias=False)
        self.g_proj = nn.Linear(width, inner, bias=False)
        if options.use_short_conv:
            self.i_conv = ShortConvolution(inner, options.conv_size, activation=None, state_index=0)
            self.f_conv = ShortConvolution(inner, options.conv_size, activation=None, state_index=1)
        self.o_norm = GatedRMSNorm(inner, config.norm_eps, affine=options.output_norm_affine)
        self.o_proj = nn.Linear(inner, width, bias=False)

    @classmethod
    def inner_size(cls, config: Any, options: HGRNOptions) -> int:
        """E, the channels of the state."""
        return int(config.hidden_size * options.expand_ratio)

    @classmethod
    def validate(cls, config: Any, options: HGRNOptions) -> None:
        if cls.inner_size(config, options) < 1:
            raise ConfigError(
                f"mixer hgrn: expand_ratio {options.expand_ratio} is not allowed; expand_ratio * hidden_size must be "
                f"at least 1, nearest valid: {1 / config.hidden_size:g}"
            )

    @classmethod
    def shared(cls, config: Any, options: HGRNOptions) -> LowerBoundsSpec | None:
        if not options.use_lower_bound:
            return None
        return LowerBoundsSpec(config.num_hidden_layers, cls.inner_size(config, options))

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        i, f = self.i_proj(x), self.f_proj(x)
        if self.options.use_short_conv:
            i, f = self.i_conv(i, layout, state), self.f_conv(f, layout, state)
        bound = context.shared if self.layer_idx > 0 else None  # gamma_0 = 0
        taken_in = layout.zero_padding(bounded_complement(f, bound))  # 1 - f: padding keeps all and takes in nothing
        h = state.advance(hgrn_scan, F.silu(i) * taken_in, 1 - taken_in, layout=layout)
        return self.o_proj(self.o_norm(h.to(x.dtype), self.g_proj(x)))

    def cost(self, seq_len: int) -> MixerCost:
        """The recurrence is elementwise, without products; its state is E = D expand_ratio fp32 numbers."""
        convs = [module for module in self.children() if isinstance(module, ShortConvolution)]
        per_token = sum(conv.flops(1) for conv in convs)
        element = cache_element_bytes(self.config)
        return MixerCost(
            mixing_flops=per_token * seq_len,
            decode_flops=per_token,
            state_bytes=4 * self.inner + sum(conv.state_bytes(element) for conv in convs),
        )
