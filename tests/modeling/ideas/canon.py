"""A short convolution of one's own at several places of the block."""

from hf_arch.core.registry import SITES
from hf_arch.layers.cost import MixerCost
from hf_arch.layers.short_conv import ShortConvolution
from hf_arch.layers.sites.base import Site


@SITES.register("idea_canon")
class Convolution(Site):
    places = ("mixer_input", "qkv", "ffn_input", "ffn_hidden")
    keeps_state = True
    label = "MyCanon"

    def __init__(self, config, options, spot):
        super().__init__(config, options, spot)
        self.conv = ShortConvolution(spot.width, 3, activation=None, state_index=spot.slot)

    def forward(self, x, *, source, context):
        layout = context.layout
        return x + layout.restore(self.conv(layout.compact(x), layout, self.state(context)))

    def cost(self, seq_len):
        flops = self.conv.flops(1)
        return MixerCost(flops * seq_len, flops, self.conv.state_bytes(4))
