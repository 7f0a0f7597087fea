"""Gated short convolution (Liquid AI 2025, LFM2): a few neighbouring tokens between two gates, no recurrence.

    B, C, u = W_in x,   y = W_out [ C * conv(B * u) ]

The convolution is causal and depthwise; its window is the whole state.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..short_conv import ShortConvolution
from ..state import LayerState
from .base import CacheKind, MixerCost, RecurrentMixer


@options
class GatedConvOptions(Options):
    """`conv_size`: tokens that a convolution sees, the own one included; `bias`: of all three parts."""

    conv_size: int = 3
    bias: bool = False


@MIXERS.register("gated_conv")
class GatedConvolution(RecurrentMixer):
    """LFM2's convolution layer."""

    Options = GatedConvOptions
    cache_kind: ClassVar[CacheKind] = "conv"
    label: ClassVar[str] = "Conv"

    def __init__(self, config: Any, options: GatedConvOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        width = config.hidden_size
        self.in_proj = nn.Linear(width, 3 * width, bias=options.bias)
        self.conv = ShortConvolution(width, options.conv_size, bias=options.bias, activation=None)
        self.out_proj = nn.Linear(width, width, bias=options.bias)

    @classmethod
    def validate(cls, config: Any, options: GatedConvOptions) -> None:
        if options.conv_size < 1:
            raise ConfigError(f"mixer gated_conv: conv_size {options.conv_size} is not allowed; use an integer >= 1")

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        before, after, inner = self.in_proj(x).chunk(3, -1)
        return self.out_proj(after * self.conv(layout.zero_padding(before * inner), layout, state))

    def cost(self, seq_len: int) -> MixerCost:
        """The convolution, and its window."""
        window = self.conv.state_bytes(cache_element_bytes(self.config))
        return MixerCost(self.conv.flops(seq_len), self.conv.flops(1), window)
