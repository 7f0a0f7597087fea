"""Scaled residuals: learned factors on the branches, the embedding mixed back in, and a layer taken out at the end.

before layer i:   x <- a_i x + c_i x0                                        (`x0`; x0 the embedding)
each sublayer:    x <- x + gamma f(x)                                        (`scale`; gamma [D] or one number)
at the end:       x <- x - b (x after layer L // 2)                          (`backout`)

gamma [D] is LayerScale (Touvron et al. 2021), one number starting at 0 is ReZero (Bachlechner et al. 2020) and SkipInit
(De & Smith 2020). The mix with x0 is modded-nanogpt's and nanochat's, who start it at (1, 0) and at ramps over the
layers; backout is nanochat's.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.options import Options, options
from ...core.registry import STREAMS
from .base import LayerStream, State, Stream, Sublayer, check_finite, sublayers


@options
class ScaledOptions(Options):
    """`scale`: learned factor of each branch, "vector" ([D], LayerScale), "scalar" (ReZero) or "none". `scale_init`:
    what it starts at; None = 0.1 to 18 layers, 1e-5 to 24, 1e-6 above for "vector", 0 for "scalar". `x0`: mix the
    embedding back in before each layer, starting at "identity" (a = 1, c = 0) or "ramp" (a from 1.15 down to 1.05, c
    from 0.2 to 0.05). `backout`: start of b, None = without."""

    scale: Literal["none", "scalar", "vector"] = "vector"
    scale_init: float | None = None
    x0: Literal["none", "identity", "ramp"] = "none"
    backout: float | None = None


class ScaledLayer(LayerStream):
    """State: (x, x0 where it is read again, the middle layer's x from there on where it is backed out)."""

    def __init__(self, config: Any, options: ScaledOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        if options.scale != "none":
            width = config.hidden_size if options.scale == "vector" else 1
            for site in sublayers(config, layer_idx):
                setattr(self, f"{site}_scale", nn.Parameter(torch.empty(width)))
        if options.x0 != "none":
            self.stream_scale, self.x0_scale = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))

    def init_weights(self) -> None:
        for site in sublayers(self.config, self.layer_idx):
            if self.options.scale != "none":
                init.constant_(getattr(self, f"{site}_scale"), scale_init(self.config, self.options))
        if self.options.x0 != "none":
            depth = self.layer_idx / max(1, self.config.num_hidden_layers - 1)
            ramp = self.options.x0 == "ramp"
            init.constant_(self.stream_scale, 1.15 - 0.10 * depth if ramp else 1.0)
            init.constant_(self.x0_scale, 0.20 - 0.15 * depth if ramp else 0.0)

    def enter(self, state: State) -> State:
        if self.options.x0 == "none":
            return state
        return (self.stream_scale * state[0] + self.x0_scale * state[1], *state[1:])

    def write(self, state: State, out: Tensor, site: Sublayer) -> State:
        scaled = out if self.options.scale == "none" else getattr(self, f"{site}_scale") * out
        return (state[0] + scaled, *state[1:])

    def leave(self, state: State) -> State:
        if self.options.backout is None or self.layer_idx != self.config.num_hidden_layers // 2:
            return state
        at = middle_index(self.options)
        return (*state[:at], state[0], *state[at:])


def scale_init(config: Any, options: ScaledOptions) -> float:
    """What the factors of the branches start at."""
    if options.scale_init is not None:
        return options.scale_init
    if options.scale == "scalar":
        return 0.0
    return next((value for depth, value in ((18, 0.1), (24, 1e-5)) if config.num_hidden_layers <= depth), 1e-6)


def middle_index(options: ScaledOptions) -> int:
    """Where the state holds the middle layer's x."""
    return 2 if keeps_x0(options) else 1


def keeps_x0(options: ScaledOptions) -> bool:
    """Whether the state holds the embedding: to mix it in, or for the gates of `unet`."""
    return options.x0 != "none" or getattr(options, "skip", None) == "gate"


@STREAMS.register("scaled")
class ScaledStream(Stream):
    """Learned factors on the residual stream."""

    Options = ScaledOptions
    Layer: ClassVar[type[LayerStream]] = ScaledLayer
    label = "Scaled"

    def __init__(self, config: Any, options: ScaledOptions):
        super().__init__(config, options)
        self.backout = None if options.backout is None else nn.Parameter(torch.empty(1))

    @classmethod
    def repeats(cls, options: Any) -> bool:
        return options.backout is None

    @classmethod
    def validate(cls, config: Any, options: ScaledOptions) -> None:
        check_finite("stream scale_init", options.scale_init)
        check_finite("stream backout", options.backout)

    def init_weights(self) -> None:
        if self.backout is not None:
            init.constant_(self.backout, self.options.backout)

    def start(self, embeddings: Tensor) -> State:
        return (embeddings, embeddings) if keeps_x0(self.options) else (embeddings,)

    def finish(self, state: State) -> Tensor:
        return state[0] if self.backout is None else state[0] - self.backout * state[middle_index(self.options)]
