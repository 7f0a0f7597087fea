"""Canon layers (Allen-Zhu 2025, arXiv 2512.17351): each channel mixed with its last few tokens, along the whole block.

    canon(x)_t = x_t + act( sum_w weight[:, w] x_{t - W + 1 + w} + bias )

Canon A stands at `mixer_input`, B at `qkv`, C at `ffn_input` and D at `ffn_hidden`. As published: four tokens, no bias,
no activation, the initialisation of torch's Conv1d.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import initialization as init

from ...core.options import options
from ...core.registry import SITES
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..cost import MixerCost
from ..short_conv import ShortConvolution
from ..streams.base import check_whole
from .base import Site, SiteOptions, Spot


@options
class CanonOptions(SiteOptions):
    """`kernel_size`: tokens, the own one included. `residual`: whether x itself is added."""

    kernel_size: int = 4
    bias: bool = False
    activation: Literal["none", "silu"] = "none"
    residual: bool = True


@SITES.register("canon")
class Canon(Site):
    """A short causal convolution of each channel, added to it."""

    Options = CanonOptions
    label = "Canon"
    places: ClassVar[tuple[str, ...]] = ("mixer_input", "qkv", "ffn_input", "ffn_hidden")
    keeps_state: ClassVar[bool] = True

    def __init__(self, config: Any, options: CanonOptions, spot: Spot):
        super().__init__(config, options, spot)
        activation = None if options.activation == "none" else options.activation
        self.conv = ShortConvolution(
            spot.width, options.kernel_size, bias=options.bias, activation=activation, state_index=spot.slot
        )

    @classmethod
    def validate(cls, config: Any, options: CanonOptions) -> None:
        check_whole("sites canon kernel_size", options.kernel_size, 2)

    def init_weights(self) -> None:
        bound = 1 / math.sqrt(self.options.kernel_size)
        for parameter in self.conv.parameters():
            init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, *, source: Tensor, context: LayerContext) -> Tensor:
        layout = context.layout
        mixed = layout.restore(self.conv(layout.compact(x), layout, self.state(context)))
        return x + mixed if self.options.residual else mixed

    def cost(self, seq_len: int) -> MixerCost:
        flops = self.conv.flops(1)
        return MixerCost(flops * seq_len, flops, self.conv.state_bytes(cache_element_bytes(self.config)))
