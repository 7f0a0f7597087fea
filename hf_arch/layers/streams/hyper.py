"""Hyper-connections (Zhu et al., 2024, arXiv 2409.19606): n copies of the stream, and learned mixing between them.

For the streams X_1..X_n, each [B, T, D], and each sublayer f:

    [a_m | A_m1 .. A_mn] = static_alpha_m + s_a tanh(LN(X_m) W_a)        (`dynamic`; else static_alpha alone)
    b_m = static_beta_m + s_b tanh(LN(X_m) . w_b)
    y = f(norm(sum_m a_m X_m)),     X_j <- sum_m A_mj X_m + b_j y

They start as n copies of the embedding and end in their sum. At the start A is the identity, b is 1, and sublayer l
reads stream l mod n; with one stream that is x + f(x). The recorded hidden states are those of the first stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.options import Options, options
from ...core.registry import STREAMS
from ..cost import MixerCost, per_token
from ..norms import ArchLayerNorm
from .base import LayerStream, State, Stream, StreamPart, Sublayer, check_whole, sublayers, sublayers_before


@options
class HyperOptions(Options):
    """`streams`: n. `dynamic`: whether the mixing depends on the token, besides what is learned for all."""

    streams: int = 4
    dynamic: bool = True


class HyperConnection(StreamPart):
    """How one sublayer reads from and writes to the streams."""

    def __init__(self, config: Any, options: HyperOptions, index: int):
        super().__init__()
        self.n, self.index, self.width = options.streams, index, config.hidden_size
        self.static_alpha = nn.Parameter(torch.empty(self.n, 1 + self.n))
        self.static_beta = nn.Parameter(torch.empty(self.n))
        self.dynamic = options.dynamic
        if self.dynamic:
            self.norm = ArchLayerNorm(self.width, config.norm_eps)
            self.alpha_weight = nn.Parameter(torch.empty(1 + self.n, self.width))
            self.beta_weight = nn.Parameter(torch.empty(1, self.width))
            self.alpha_scale, self.beta_scale = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))

    no_weight_decay = ("static_alpha",)

    def init_weights(self) -> None:
        alpha = torch.cat([torch.zeros(self.n, 1), torch.eye(self.n)], dim=1)
        alpha[self.index % self.n, 0] = 1.0
        init.copy_(self.static_alpha, alpha)
        init.ones_(self.static_beta)
        if self.dynamic:
            for weight in (self.alpha_weight, self.beta_weight):
                init.zeros_(weight)
            for scale in (self.alpha_scale, self.beta_scale):
                init.constant_(scale, 0.01)

    def read(self, state: State) -> Tensor:
        """sum_m a_m X_m, [B, T, D]."""
        streams = torch.stack(state, dim=-2)
        a = self.static_alpha[:, 0]
        if self.dynamic:
            a = a + self.alpha_scale * torch.tanh(F.linear(self.norm(streams), self.alpha_weight[:1])).squeeze(-1)
        return (a.expand(streams.shape[:-1]).unsqueeze(-2) @ streams).squeeze(-2)

    def write(self, state: State, out: Tensor) -> State:
        """The streams after the sublayer's output [B, T, D]."""
        streams = torch.stack(state, dim=-2)
        mix: Tensor = self.static_alpha[:, 1:]
        beta: Tensor = self.static_beta
        if self.dynamic:
            normed = self.norm(streams)
            mix = mix + self.alpha_scale * torch.tanh(F.linear(normed, self.alpha_weight[1:]))
            beta = beta + self.beta_scale * torch.tanh(F.linear(normed, self.beta_weight)).squeeze(-1)
        mixed = mix.expand(*streams.shape[:-1], self.n).mT @ streams
        return (mixed + beta.unsqueeze(-1) * out.unsqueeze(-2)).unbind(-2)

    def cost(self, seq_len: int) -> MixerCost:
        mixing = self.n * (1 + self.n)  # reading, and writing without the elementwise b y
        return per_token(2 * self.width * (mixing + (self.n * (2 + self.n) if self.dynamic else 0)), seq_len)


class ConnectedLayer(LayerStream):
    """State: the n streams. Each sublayer has a connection under its name, a part with `read(state)` and
    `write(state, out)`."""

    def read(self, state: State, site: Sublayer) -> Tensor:
        return getattr(self, site)("read", state)

    def write(self, state: State, out: Tensor, site: Sublayer) -> State:
        return getattr(self, site)("write", state, out)


class HyperLayer(ConnectedLayer):
    """A connection of learned weights to each sublayer."""

    def __init__(self, config: Any, options: HyperOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        before = sublayers_before(config, layer_idx)
        for index, site in enumerate(sublayers(config, layer_idx)):
            setattr(self, site, HyperConnection(config, options, before + index))


@STREAMS.register("hyper")
class HyperStream(Stream):
    """n streams with learned mixing."""

    Options = HyperOptions
    Layer = HyperLayer
    label = "Hyper"

    @classmethod
    def validate(cls, config: Any, options: HyperOptions) -> None:
        check_whole("stream streams", options.streams)

    def start(self, embeddings: Tensor) -> State:
        return (embeddings,) * self.options.streams

    def finish(self, state: State) -> Tensor:
        return torch.stack(state).sum(0)
