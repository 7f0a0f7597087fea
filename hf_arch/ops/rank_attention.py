"""Linear attention with several writes and several reads a token (the multi-input multi-output form of Mamba-3, Lahoti
et al. 2026, arXiv 2603.15569).

All W outer products of a token enter the state before its R queries read it. Chunks are those of linear attention
with a scalar decay: the writes of a token stand side by side, and so do its reads, so that scores are [C R, C W].

Legend: B batch, T time, R reads, W writes, H heads, K key dim, V value dim, N chunks, C chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from .chunk_states import chunk_states
from .chunks import from_chunks, to_chunks
from .decay import decay_products
from .recurrence import LOG_DECAY, ChunkedCall, Recurrence


@dataclass(eq=False, repr=False)
class RankAttention(ChunkedCall[Tensor]):
    """S_t = exp(g_t) S_{t-1} + sum_w k_tw v_tw^T, o_tr = q_tr^T S_t: W writes and R reads a token.

    A token with k = 0 or v = 0 and g = 0 leaves the state alone wherever it stands: padding is passed so.

    The output [B, T, R, H, V] has v's dtype, the state is fp32 (fp64 for fp64 inputs). Chunks have 32 tokens.
    """

    q: Annotated[Tensor, "B T R H K", "queries, any floating dtype"]
    k: Annotated[Tensor, "B T W H K", "keys"]
    v: Annotated[Tensor, "B T W H V", "values"]
    g: Annotated[Tensor, "B T H", LOG_DECAY]

    states = ("B H K V",)
    output = "v"

    def naive(self) -> tuple[Tensor, Tensor]:
        def advance(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
            state = g.exp()[..., None, None] * state + torch.einsum("bwhk,bwhv->bhkv", k, v)
            return torch.einsum("brhk,bhkv->brhv", q, state), state

        return self.each_token(advance, self.q, self.k, self.v, self.g)

    def chunk(self) -> tuple[Tensor, Tensor]:
        chunk, keep = self.chunk_length(), self.keep_chunks()
        reads, writes = self.sizes["R"], self.sizes["W"]
        query = to_chunks(self.q.flatten(1, 2), chunk * reads, self.dtype)
        key, value = (to_chunks(x.flatten(1, 2), chunk * writes, self.dtype) for x in (self.k, self.v))
        decay = to_chunks(self.g, chunk, self.dtype).exp()
        between, prefix, suffix, total = decay_products(decay if keep is None else decay * keep)
        scores = (query @ key.mT).unflatten(-1, (chunk, writes)).unflatten(-3, (chunk, reads))
        scores = (scores * between[..., :, None, :, None]).flatten(-2).flatten(-3, -2)
        increments = (key.unflatten(-2, (chunk, writes)) * suffix[..., None, None]).flatten(-3, -2).mT @ value
        states, state = chunk_states(increments, total[..., None, None], self.start_state(), 0)
        carried = (query @ states).unflatten(-2, (chunk, reads)) * prefix[..., None, None]
        o = from_chunks(scores @ value + carried.flatten(-3, -2), self.sizes["T"] * reads, self.v.dtype)
        return o.unflatten(1, (-1, reads)), state


rank_attention = Recurrence(RankAttention, "rank_attention")
