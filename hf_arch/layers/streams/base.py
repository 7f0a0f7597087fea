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

from typing import Any, ClassVar, Literal

from torch import Tensor

from ...core.options import Options
from ...core.registry import STREAMS
from ..contract import Part

State = tuple[Tensor, ...]
Sublayer = Literal["mixer", "ffn"]


class LayerStream(Part):
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


class Stream(Part):
    """The whole model's part; built as `StreamClass(config, options)`."""

    Options: ClassVar[type[Options]] = Options
    Layer: ClassVar[type[LayerStream]] = LayerStream
    label: ClassVar[str] = ""
    """What architecture names such as `12L-12H-768D-RoPE` add for it; nothing for the default."""
    norm_positions: ClassVar[tuple[str, ...]] = ("pre", "sandwich")
    """Norm positions that make sense with it."""

    def __init__(self, config: Any, options: Any):
        super().__init__()
        self.config, self.options = config, options

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        """Raise a ConfigError where the options and the config do not fit together."""

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

    norm_positions = ("pre", "post", "sandwich")
