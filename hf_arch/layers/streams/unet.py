"""U-net skips (modded-nanogpt): layers of the second half get the outputs of the first, last in, first out.

layer i < L / 2:        push its output
before layer L - 1 - i:  x <- x + w_i pop()        (then the x0 mix of `scaled`, where it is on)
with `skip` "gate":      w_i = sigmoid(c_i) 2 sigmoid(W_i x0[:16])         (its later form; x0 the embedding)

An odd number of layers leaves the middle one without a skip.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.options import options
from ...core.registry import STREAMS
from .base import State, check_finite
from .scaled import ScaledLayer, ScaledOptions, ScaledStream

GATE_CHANNELS = 16
"""Of the embedding, which the gate of a skip reads."""


@options
class UNetOptions(ScaledOptions):
    """`skip`: a learned "factor" of each, or a "gate" that reads the embedding. `skip_init`: what the factor w_i starts
    at, or c_i of the gate; None = 1 and -1.5. The others as in `scaled`, without a factor of the branches
    by default."""

    scale: Literal["none", "scalar", "vector"] = "none"
    skip: Literal["factor", "gate"] = "factor"
    skip_init: float | None = None


class UNetLayer(ScaledLayer):
    """State: that of `scaled`, then the outputs that wait for their layer."""

    def __init__(self, config: Any, options: UNetOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        half = config.num_hidden_layers // 2
        self.pushes, pops = layer_idx < half, layer_idx >= config.num_hidden_layers - half
        self.skip_scale = nn.Parameter(torch.empty(1)) if pops else None
        self.gate_width = min(GATE_CHANNELS, config.hidden_size)
        self.skip_gate = nn.Linear(self.gate_width, 1, bias=False) if pops and options.skip == "gate" else None

    def init_weights(self) -> None:
        super().init_weights()
        if self.skip_scale is not None:
            start = -1.5 if self.skip_gate is not None else 1.0
            given = self.options.skip_init
            init.constant_(self.skip_scale, start if given is None else given)

    def enter(self, state: State) -> State:
        if self.skip_scale is not None:
            factor: Tensor = self.skip_scale
            if self.skip_gate is not None:
                channels = state[1][..., : self.gate_width]
                factor = torch.sigmoid(factor) * 2 * torch.sigmoid(self.skip_gate(channels))
            state = (state[0] + factor * state[-1], *state[1:-1])
        return super().enter(state)

    def leave(self, state: State) -> State:
        state = super().leave(state)
        return (*state, state[0]) if self.pushes else state


@STREAMS.register("unet")
class UNetStream(ScaledStream):
    """Skips from the first half of the layers to the second."""

    Options = UNetOptions
    Layer = UNetLayer
    label = "UNet"

    @classmethod
    def repeats(cls, options: Any) -> bool:
        return False

    @classmethod
    def validate(cls, config: Any, options: UNetOptions) -> None:  # type: ignore[override]
        super().validate(config, options)
        check_finite("stream skip_init", options.skip_init)
