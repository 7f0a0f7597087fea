"""The stream contract: what flows through depth, and how a layer's two sublayers read from and write to it.

A model has one `Stream`; each of its layers has a `LayerStream` with that layer's parameters. With state S (a tuple
of tensors, the first of which is [B, T, D] and what `output_hidden_states` records) and sublayers f_mixer, f_ffn a
forward pass is

    S = stream.start(embeddings)
    for each layer:  S = enter(S)
                     for site in mixer, ffn:  S = write(S, f_site(norm(read(S, site))), site)
                     S = leave(S)
    hidden states = stream.finish(S)

The default, `add`, keeps one tensor: read gives it, write adds to it.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from torch import Tensor

from ...core.errors import ConfigError
from ...core.registry import STREAMS
from ..contract import CalledByMethod, ConfiguredPart, Part
from ..cost import MixerCost
from ..ffns.ffn import NoFeedForward

State = tuple[Tensor, ...]
Sublayer = Literal["mixer", "ffn"]


def sublayers(config: Any, layer_idx: int) -> tuple[Sublayer, ...]:
    """The sublayers of one layer: the mixer, and the feed-forward where there is one."""
    return ("mixer",) if config.ffn_specs[layer_idx][0] is NoFeedForward else ("mixer", "ffn")


def sublayers_before(config: Any, layer_idx: int) -> int:
    """How many sublayers that write to the stream come before a layer's mixer."""
    writing = [len(sublayers(config, index)) - (not config.mixer_specs[index][0].writes) for index in range(layer_idx)]
    return sum(writing)


def check_whole(field: str, value: int, least: int = 1) -> None:
    """Raise a ConfigError where `value` is below `least`."""
    if value < least:
        raise ConfigError(f"{field}: {value} is not allowed; use an integer >= {least}")


def check_finite(field: str, value: float | None, least: float = -math.inf) -> None:
    """Raise a ConfigError where `value` is not a finite number of at least `least`; None passes."""
    if value is not None and not (math.isfinite(value) and value >= least):
        allowed = "a finite number" if least == -math.inf else f"a number of at least {least:g}"
        raise ConfigError(f"{field}: {value!r} is not allowed; use {allowed}")


class StreamPart(CalledByMethod):
    """A part of the stream."""

    def cost(self, seq_len: int) -> MixerCost:
        """What its own parts cost, added up."""
        parts = [child for child in self.children() if isinstance(child, Part)]
        return sum((part.cost(seq_len) for part in parts), MixerCost())


class LayerStream(StreamPart):
    """One layer's part of the stream; built as `LayerStreamClass(config, options, layer_idx)`. Every method is per
    token, so padding, documents and caches need no care."""

    def __init__(self, config: Any, options: Any, layer_idx: int):
        super().__init__()
        self.config, self.options, self.layer_idx = config, options, layer_idx

    def enter(self, state: State) -> State:
        """The state before the layer's first sublayer."""
        return state

    def read(self, state: State, site: Sublayer) -> Tensor:
        """What the sublayer sees, [B, T, D], before its norm."""
        return state[0]

    def write(self, state: State, out: Tensor, site: Sublayer) -> State:
        """The state after the sublayer's output [B, T, D]."""
        return (state[0] + out, *state[1:])

    def leave(self, state: State) -> State:
        """The state after the layer's last sublayer."""
        return state


class Stream(StreamPart, ConfiguredPart):
    """The whole model's part; built as `StreamClass(config, options)`."""

    Layer: ClassVar[type[LayerStream]] = LayerStream
    norm_positions: ClassVar[tuple[str, ...]] = ("pre", "sandwich")
    """Norm positions that make sense with it."""
    norms_what_it_gives: ClassVar[bool] = False
    """Whether `read` and `finish` give what is normed: layers and the end then have no norms of their own."""

    @classmethod
    def repeats(cls, options: Any) -> bool:
        """Whether a layer's part may run several times (looped depth); not where it counts what came before."""
        return True

    @classmethod
    def shares_norm(cls, options: Any) -> bool:
        """Whether both sublayers of a layer read one normed input."""
        return False

    def start(self, embeddings: Tensor) -> State:
        """The state before the first layer, from the embeddings [B, T, D]."""
        return (embeddings,)

    def finish(self, state: State) -> Tensor:
        """[B, T, D] for the final norm."""
        return state[0]


@STREAMS.register("add")
class AddStream(Stream):
    """x + f(x), as in every transformer."""

    norm_positions = ("pre", "post", "sandwich", "output", "stream")
