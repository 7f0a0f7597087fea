"""Two-hop residuals (Rodimus+, He et al. 2024, arXiv 2410.06577): the mixer's output reaches the stream by way of the
feed-forward alone.

    y = mixer(norm(x)),   x <- x + ffn(norm(x + y))

y itself is not added to x. A layer without a feed-forward adds its mixer's output as usual.
"""

from __future__ import annotations

from torch import Tensor

from ...core.registry import STREAMS
from .base import LayerStream, State, Stream, Sublayer, sublayers


class TwoHopLayer(LayerStream):
    """State between the two sublayers: (x, x + y); elsewhere (x,)."""

    def read(self, state: State, site: Sublayer) -> Tensor:
        return state[-1]

    def write(self, state: State, out: Tensor, site: Sublayer) -> State:
        if site == "mixer" and "ffn" in sublayers(self.config, self.layer_idx):
            return (state[0], state[0] + out)
        return (state[0] + out,)


@STREAMS.register("two_hop")
class TwoHopStream(Stream):
    """The mixer writes to the feed-forward, which writes to the stream."""

    Layer = TwoHopLayer
    label = "TwoHop"
