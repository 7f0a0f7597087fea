"""Manifold-constrained hyper-connections (mHC; arXiv 2512.24880, as in DeepSeek-V4): n streams whose mixing is doubly
stochastic, so that depth neither grows nor shrinks them.

Each sublayer f has fn [(2 + n) n, n D], base [(2 + n) n] and scale [3]. With X the streams and N the RMSNorm without
weight over all n D channels, in fp32:

    z = fn N(vec X), split n | n | n^2
    pre = sigmoid(z1 scale_0 + base1) + eps,   post = 2 sigmoid(z2 scale_1 + base2)
    C = Sinkhorn(softmax(z3 scale_2 + base3 as [n, n], last index) + eps)
    y = f(norm(sum_m pre_m X_m)),   X_j <- post_j y + sum_m C_mj X_m

They start as n copies of the embedding and end in sum_m w_m X_m, w = sigmoid(head_fn N(vec X) head_scale + head_base) +
eps. The recorded hidden states are those of the first stream.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import STREAMS
from ...ops.precision import state_dtype, without_autocast
from ..cost import MixerCost, per_token
from .base import State, Stream, StreamPart, check_whole, sublayers
from .hyper import ConnectedLayer


@options
class MHCOptions(Options):
    """`streams`: n. `iterations`: of Sinkhorn's normalisation. `eps`: in its denominators, and added to the weights."""

    streams: int = 4
    iterations: int = 20
    eps: float = 1e-6


class StreamMap(StreamPart):
    """z = fn N(vec X) for some rows of fn, in fp32: what the weights of mixing are made of."""

    keep_fp32: ClassVar[tuple[str, ...]] = ("fn", "base", "scale")

    def __init__(self, config: Any, options: MHCOptions, rows: int, scales: int):
        super().__init__()
        self.n, self.width, self.options = options.streams, config.hidden_size, options
        self.norm_eps, self.std = config.norm_eps, config.initializer_range
        self.fn = nn.Parameter(torch.empty(rows, self.n * self.width))
        self.base, self.scale = nn.Parameter(torch.empty(rows)), nn.Parameter(torch.empty(scales))

    def init_weights(self) -> None:
        init.normal_(self.fn, mean=0.0, std=self.std)
        init.zeros_(self.base)
        init.ones_(self.scale)

    def logits(self, streams: Tensor, start: int, end: int, scale: int) -> Tensor:
        """z scale + base for rows start to end, [B, T, end - start], from the streams [B, T, n, D]."""
        flat = streams.flatten(-2).to(state_dtype(streams))
        with without_autocast(flat):
            normed = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + self.norm_eps)
            z = F.linear(normed, self.fn[start:end].to(flat.dtype))
        return z * self.scale[scale] + self.base[start:end]

    def read(self, state: State) -> Tensor:
        """sum_m w_m X_m with w = sigmoid(the first n rows) + eps, [B, T, D] in the dtype of the streams."""
        streams = torch.stack(state, dim=-2)
        weights = torch.sigmoid(self.logits(streams, 0, self.n, 0)) + self.options.eps
        return (weights.unsqueeze(-2).to(streams.dtype) @ streams).squeeze(-2)

    def cost(self, seq_len: int) -> MixerCost:
        return per_token(2 * self.width * self.n * (self.fn.shape[0] + 1), seq_len)


class ManifoldConnection(StreamMap):
    """How one sublayer reads from and writes to the streams."""

    def __init__(self, config: Any, options: MHCOptions):
        super().__init__(config, options, (2 + options.streams) * options.streams, 3)

    def write(self, state: State, out: Tensor) -> State:
        """The streams after the sublayer's output [B, T, D]."""
        n, streams = self.n, torch.stack(state, dim=-2)
        post = 2 * torch.sigmoid(self.logits(streams, n, 2 * n, 1))
        mix = self._doubly_stochastic(self.logits(streams, 2 * n, (2 + n) * n, 2).unflatten(-1, (n, n)))
        written = post.unsqueeze(-1).to(out.dtype) * out.unsqueeze(-2)
        return (written + mix.mT.to(streams.dtype) @ streams).unbind(-2)

    def _doubly_stochastic(self, logits: Tensor) -> Tensor:
        eps = self.options.eps
        mix = torch.softmax(logits, dim=-1) + eps
        mix = mix / (mix.sum(-2, keepdim=True) + eps)
        for _ in range(self.options.iterations - 1):
            mix = mix / (mix.sum(-1, keepdim=True) + eps)
            mix = mix / (mix.sum(-2, keepdim=True) + eps)
        return mix

    def cost(self, seq_len: int) -> MixerCost:
        return super().cost(seq_len) + per_token(2 * self.width * self.n**2, seq_len)


class MHCLayer(ConnectedLayer):
    """A connection with doubly stochastic mixing to each sublayer."""

    def __init__(self, config: Any, options: MHCOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        for site in sublayers(config, layer_idx):
            setattr(self, site, ManifoldConnection(config, options))


@STREAMS.register("mhc")
class MHCStream(Stream):
    """n streams with doubly stochastic mixing."""

    Options = MHCOptions
    Layer = MHCLayer
    label = "mHC"

    def __init__(self, config: Any, options: MHCOptions):
        super().__init__(config, options)
        self.head = StreamMap(config, options, options.streams, 1)

    @classmethod
    def validate(cls, config: Any, options: MHCOptions) -> None:
        check_whole("stream streams", options.streams)
        check_whole("stream iterations", options.iterations)
        if not 0 < options.eps < 1:
            raise ConfigError(f"stream eps: {options.eps!r} is not allowed; use a number in (0, 1)")

    def start(self, embeddings: Tensor) -> State:
        return (embeddings,) * self.options.streams

    def finish(self, state: State) -> Tensor:
        return self.head("read", state)
