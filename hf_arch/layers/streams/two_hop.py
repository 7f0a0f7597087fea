"""Two-hop residuals (Rodimus+, He et al. 2024, arXiv 2410.06577): the mixer's output reaches the stream by way of the
feed-forward alone.

    y = mixer(norm(x)),   x <- x + ffn(norm(x + y))

y itself is not added to x. A layer without a feed-forward adds its mixer's output as usual.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.registry import STREAMS
from .base import LayerStream, State, Stream, Sublayer, sublayers


class TwoHopLayer(LayerStream):
    """Between the two sublayers x + y lies behind whatever else flows through depth."""

    def __init__(self, config: Any, options: Any, layer_idx: int):
        super().__init__(config, options, layer_idx)
        writes = config.mixer_specs[layer_idx][0].writes
        self.holds = writes and "ffn" in sublayers(config, layer_idx)

    def read(self, state: State, site: Sublayer) -> Tensor:
        return state[-1] if site == "ffn" and self.holds else state[0]

    def write(self, state: State, out: Tensor, site: Sublayer) -> State:
        if site == "mixer" and self.holds:
            return (*state, state[0] + out)
        return (state[0] + out, *(state[1:-1] if self.holds else state[1:]))


@STREAMS.register("two_hop")
class TwoHopStream(Stream):
    """The mixer writes to the feed-forward, which writes to the stream."""

    Layer = TwoHopLayer
    label = "TwoHop"
