"""Weighted residuals: fixed factors on what a sublayer finds and on what it adds.

    x <- keep x + add f(x)

DeepNet (Wang et al. 2022, arXiv 2203.00555) keeps (2 L)^(1/4) times x under norms behind the sum, MiniMax-01 (arXiv
2501.08313) has factors for each kind of layer, on a stream that is itself normed (`norm_position: stream`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import STREAMS
from .base import LayerStream, State, Stream, Sublayer, check_finite


@options
class WeightedOptions(Options):
    """`keep`, `add`: (factor of the mixer, factor of the feed-forward), a pair for each layer or a pattern of pairs."""

    keep: list[list[float]] | None = None
    add: list[list[float]] | None = None


class WeightedLayer(LayerStream):
    """One layer's factors."""

    def write(self, state: State, out: Tensor, site: Sublayer) -> State:
        at = 0 if site == "mixer" else 1
        keep, add = (_pair(given, self.layer_idx)[at] for given in (self.options.keep, self.options.add))
        return ((state[0] if keep == 1 else keep * state[0]) + (out if add == 1 else add * out), *state[1:])


def _pair(given: list[list[float]] | None, layer: int) -> tuple[float, float] | list[float]:
    return (1.0, 1.0) if given is None else given[layer % len(given)]


@STREAMS.register("weighted")
class WeightedStream(Stream):
    """keep x + add f(x)."""

    Options = WeightedOptions
    Layer: ClassVar[type[LayerStream]] = WeightedLayer
    label = "Weighted"
    norm_positions = ("pre", "post", "sandwich", "output", "stream")

    @classmethod
    def validate(cls, config: Any, options: WeightedOptions) -> None:
        for name, given in (("keep", options.keep), ("add", options.add)):
            if given is None:
                continue
            count = config.num_hidden_layers
            if not 0 < len(given) <= count or any(len(pair) != 2 for pair in given):
                raise ConfigError(f"stream weighted {name}: {given} is not allowed; use 1 to {count} pairs of numbers")
            for pair in given:
                for value in pair:
                    check_finite(f"stream weighted {name}", value)
