"""Gated streams (Qwen4-Exp's gated residual): n streams, read through a gate of each channel, written by a factor each.

    h_m = RMS(X_m) (1 + w_m),   gate = sigmoid( W_up silu( W_down vec(h) / n ) )  as [n, D]
    y = f( mean_m gate_m h_m ),   X_m <- X_m + 2 sigmoid( (W_in vec(h) / n)_m ) y

The streams start as n copies of the embedding and do not mix. What a sublayer reads is normed already, so layers have
no norms of their own, and the last reading stands in place of the final norm. The recorded hidden states are those of
the first stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.options import Options, options
from ...core.registry import STREAMS
from ...ops.precision import state_dtype
from .base import State, Stream, StreamPart, check_whole, sublayers
from .hyper import ConnectedLayer


@options
class GatedStreamsOptions(Options):
    """`streams`: n. `rank`: of the gate, None = hidden_size / 8 (at least 1)."""

    streams: int = 4
    rank: int | None = None


class StreamGate(StreamPart):
    """How one sublayer reads from the streams, and (`writes`) how it writes to them."""

    no_weight_decay = ("weight",)

    def __init__(self, config: Any, options: GatedStreamsOptions, *, writes: bool = True):
        super().__init__()
        self.n, self.eps = options.streams, config.norm_eps
        width, rank = options.streams * config.hidden_size, options.rank or max(1, config.hidden_size // 8)
        self.weight = nn.Parameter(torch.empty(self.n, config.hidden_size))
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        self.inject = nn.Linear(width, self.n, bias=False) if writes else None

    def init_weights(self) -> None:
        init.zeros_(self.weight)

    def normed(self, state: State) -> Tensor:
        """h, [B, T, n, D]."""
        streams = torch.stack(state, dim=-2)
        exact = streams.to(state_dtype(streams))
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return (exact * (1 + self.weight.to(exact.dtype))).to(streams.dtype)

    def read(self, state: State) -> Tensor:
        """[B, T, D], normed."""
        h = self.normed(state)
        gate = torch.sigmoid(self.up(F.silu(self.down(h.flatten(-2)) / self.n)))
        return (gate.view_as(h) * h).mean(-2)

    def write(self, state: State, out: Tensor) -> State:
        """The streams after the sublayer's output [B, T, D]."""
        assert self.inject is not None
        factors = 2 * torch.sigmoid(self.inject(self.normed(state).flatten(-2)) / self.n)
        return tuple(each + factors[..., index, None] * out for index, each in enumerate(state))


class GatedStreamsLayer(ConnectedLayer):
    """A gate to each sublayer."""

    def __init__(self, config: Any, options: GatedStreamsOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        for site in sublayers(config, layer_idx):
            setattr(self, site, StreamGate(config, options))


@STREAMS.register("gated_streams")
class GatedStreams(Stream):
    """n streams behind low-rank gates that stand in place of all norms."""

    Options = GatedStreamsOptions
    Layer = GatedStreamsLayer
    label = "GatedStreams"
    norm_positions = ("pre",)
    norms_what_it_gives = True

    def __init__(self, config: Any, options: GatedStreamsOptions):
        super().__init__(config, options)
        self.head = StreamGate(config, options, writes=False)

    @classmethod
    def validate(cls, config: Any, options: GatedStreamsOptions) -> None:
        check_whole("stream streams", options.streams)
        if options.rank is not None:
            check_whole("stream rank", options.rank)

    def start(self, embeddings: Tensor) -> State:
        return (embeddings,) * self.options.streams

    def finish(self, state: State) -> Tensor:
        return self.head("read", state)
