"""Gated residuals (Muse Spark): each channel turns between the stream and the branch, at constant power.

w = gate / temperature,  beta = sigmoid(w),  alpha = sqrt(1 - beta^2)
x <- alpha x + beta f(x)

gate [D] for each sublayer. Muse Spark norms f(x) first: `norm_position: sandwich`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import STREAMS
from .base import LayerStream, State, Stream, Sublayer, sublayers

LEAST = 1e-3  # of alpha squared, for the gradient of its root


@options
class GatedOptions(Options):
    """`temperature`: divides the gates (Muse Spark's by default)."""

    temperature: float = 0.3


class GatedLayer(LayerStream):
    """One gate a sublayer."""

    def __init__(self, config: Any, options: GatedOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        for site in sublayers(config, layer_idx):
            setattr(self, f"{site}_gate", nn.Parameter(torch.empty(config.hidden_size)))

    def init_weights(self) -> None:
        for site in sublayers(self.config, self.layer_idx):
            init.normal_(getattr(self, f"{site}_gate"), mean=0.0, std=self.config.initializer_range)

    def write(self, state: State, out: Tensor, site: Sublayer) -> State:
        w = getattr(self, f"{site}_gate") / self.options.temperature
        beta = torch.sigmoid(w)
        alpha = torch.sqrt((torch.sigmoid(-w) * (1 + beta)).clamp(min=LEAST))
        return (alpha * state[0] + beta * out, *state[1:])


@STREAMS.register("gated")
class GatedStream(Stream):
    """A learned balance of stream and branch for each channel."""

    Options = GatedOptions
    Layer = GatedLayer
    label = "Gated"

    @classmethod
    def validate(cls, config: Any, options: GatedOptions) -> None:
        if not 0 < options.temperature < float("inf"):
            raise ConfigError(f"stream temperature: {options.temperature!r} is not allowed; use a number > 0")
