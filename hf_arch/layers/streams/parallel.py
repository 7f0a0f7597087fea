"""Parallel sublayers: both read the same stream (GPT-J, PaLM, GPT-NeoX, Cohere).

one norm:   x + mixer(N(x)) + ffn(N(x))            (Cohere, GPT-J, PaLM)
two norms:  x + mixer(N1(x)) + ffn(N2(x))          (GPT-NeoX)
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from ...core.options import Options, options
from ...core.registry import STREAMS
from .base import LayerStream, State, Stream, Sublayer, sublayers


@options
class ParallelOptions(Options):
    """`norms`: "one" shared by both sublayers, or "two"."""

    norms: Literal["one", "two"] = "one"


class ParallelLayer(LayerStream):
    """Holds the mixer's output back, behind whatever else flows through depth, until the feed-forward has read."""

    def __init__(self, config: Any, options: ParallelOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.holds = config.mixer_specs[layer_idx][0].writes
        self.has_ffn = "ffn" in sublayers(config, layer_idx)

    def write(self, state: State, out: Tensor, site: Sublayer) -> State:
        if site == "mixer":
            return (*state, out)
        return (state[0] + state[-1] + out, *state[1:-1]) if self.holds else (state[0] + out, *state[1:])

    def leave(self, state: State) -> State:
        return (state[0] + state[-1], *state[1:-1]) if self.holds and not self.has_ffn else state


@STREAMS.register("parallel")
class ParallelStream(Stream):
    """Mixer and feed-forward side by side."""

    Options = ParallelOptions
    Layer = ParallelLayer
    label = "Parallel"

    @classmethod
    def shares_norm(cls, options: ParallelOptions) -> bool:
        return options.norms == "one"
