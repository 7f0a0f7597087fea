"""Parallel sublayers: both read the same stream (GPT-J, PaLM, GPT-NeoX, Cohere).

one norm:   x + mixer(N(x)) + ffn(N(x))            (Cohere, GPT-J, PaLM)
two norms:  x + mixer(N1(x)) + ffn(N2(x))          (GPT-NeoX)
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...core.options import Options, options
from ...core.registry import STREAMS
from .base import LayerStream, State, Stream, Sublayer


@options
class ParallelOptions(Options):
    """`norms`: "one" shared by both sublayers, or "two"."""

    norms: Literal["one", "two"] = "one"


class ParallelLayer(LayerStream):
    """Holds the mixer's output back until the feed-forward has read."""

    def write(self, state: State, out: Tensor, site: Sublayer) -> State:
        return (*state, out) if site == "mixer" else (state[0] + state[1] + out,)

    def leave(self, state: State) -> State:
        return state if len(state) == 1 else (state[0] + state[1],)  # a layer without a feed-forward


@STREAMS.register("parallel")
class ParallelStream(Stream):
    """Mixer and feed-forward side by side."""

    Options = ParallelOptions
    Layer = ParallelLayer
    label = "Parallel"

    @classmethod
    def shares_norm(cls, options: ParallelOptions) -> bool:
        return options.norms == "one"
