"""Attention residuals (arXiv 2603.15031): a sublayer reads a mixture of what earlier ones wrote: attention over depth.

Sublayers are numbered s = 0, 1, ... through the model. With the finished blocks' sums r_0 (the embedding), r_1, ... and
`part`, the running sum of the current block of S sublayers, as sources r_i:

    h = sum_i p_i r_i,   p = softmax_i(q_s . RMS(r_i; w_s));     y = f(norm(h));     part <- part + y

There is no x + f(x). At s mod S = 0 the incoming part becomes a finished source and part starts again from y alone;
with S = 1 every sublayer's output is a source of its own. The model ends with one more mixing. q starts at 0: the mean
of all sources. The recorded hidden states are `part`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import STREAMS
from ...ops.precision import state_dtype
from ..cost import MixerCost, per_token
from ..norms import ArchRMSNorm
from .base import LayerStream, State, Stream, StreamPart, Sublayer, sublayers, sublayers_before


@options
class AttentionResidualOptions(Options):
    """`block_size`: sublayers whose outputs are summed to one source; 1, or an even number."""

    block_size: int = 1


class DepthAttention(StreamPart):
    """Attention over the sources, of which there are `sources`, with one learned query."""

    no_weight_decay = ("query",)

    def __init__(self, config: Any, sources: int):
        super().__init__()
        self.sources, self.width = sources, config.hidden_size
        self.query = nn.Parameter(torch.empty(1, self.width))
        self.norm = ArchRMSNorm(self.width, config.norm_eps)
        if sources == 1:
            self.requires_grad_(False)  # the first sublayer's are in checkpoints, and nothing depends on them

    def init_weights(self) -> None:
        init.zeros_(self.query)

    def mix(self, state: State) -> Tensor:
        """h [B, T, D]; `state` is part, then the finished sources."""
        if self.sources == 1:
            return state[0]
        sources = torch.stack((*state[1:], state[0]), dim=-2)
        scores = F.linear(self.norm(sources), self.query).squeeze(-1)
        weights = torch.softmax(scores.to(state_dtype(scores)), dim=-1).to(sources.dtype)
        return (weights.unsqueeze(-2) @ sources).squeeze(-2)

    def cost(self, seq_len: int) -> MixerCost:
        return per_token(4 * self.width * self.sources if self.sources > 1 else 0, seq_len)


def source_count(index: int, block_size: int) -> int:
    """How many sources sublayer `index` attends to."""
    return 1 + -(-index // block_size)


class AttentionResidualLayer(LayerStream):
    """State: (part, r_0, r_1, ...)."""

    def __init__(self, config: Any, options: AttentionResidualOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.first = sublayers_before(config, layer_idx)
        for index, site in enumerate(sublayers(config, layer_idx), self.first):
            setattr(self, site, DepthAttention(config, source_count(index, options.block_size)))

    def read(self, state: State, site: Sublayer) -> Tensor:
        return getattr(self, site)("mix", state)

    def write(self, state: State, out: Tensor, site: Sublayer) -> State:
        index = self.first + (site == "ffn")
        if index % self.options.block_size == 0:
            return (out, *state[1:], state[0])
        return (state[0] + out, *state[1:])


@STREAMS.register("attention_residual")
class AttentionResidualStream(Stream):
    """Attention over the outputs of earlier sublayers in place of their sum."""

    Options = AttentionResidualOptions
    Layer = AttentionResidualLayer
    label = "AttnRes"

    def __init__(self, config: Any, options: AttentionResidualOptions):
        super().__init__(config, options)
        count = sublayers_before(config, config.num_hidden_layers)
        self.head = DepthAttention(config, source_count(count, options.block_size))

    @classmethod
    def repeats(cls, options: Any) -> bool:
        return False

    @classmethod
    def validate(cls, config: Any, options: AttentionResidualOptions) -> None:
        if options.block_size < 1 or (options.block_size > 1 and options.block_size % 2):
            raise ConfigError(f"stream block_size: {options.block_size} is not allowed; use 1 or an even number")

    def finish(self, state: State) -> Tensor:
        return self.head("mix", state)
