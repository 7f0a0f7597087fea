r"""Log-linear attention: the past of a token in buckets of 1, 2, 4, ... tokens, each read with a weight of its own (Guo
et al. 2025, arXiv 2506.04761).

A token at position t of its document (counted from 0) sees itself and, for every set bit b of t, a bucket of 2^b
tokens: those whose position shares the bits of t above b and has a 0 where t has that 1. So s lies in the bucket

    bucket(t, s) = bit_length(t xor s) - 1

The state has one matrix a bucket, as a Fenwick tree: position t merges what the trailing ones of t hold into the bucket
of its lowest 0. Positions past the largest bucket all fall into that one.

Legend: B batch, T time, H heads, K key dim, V value dim, M buckets, C chunk. States are fp32, outputs have v's dtype.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from .chunks import from_chunks, to_chunks
from .decay import decay_products
from .recurrence import LOG_DECAY, OPTION, ChunkedCall, Recurrence, default_scale


@dataclass(eq=False, repr=False)
class LogLinearAttention(ChunkedCall[Tensor]):
    """o_t = sum_{s <= t} w(t, s) exp(sum_{r = s+1..t} g_r) (scale q_t . k_s) v_s: buckets of the past have weights.

    w(t, t) = own_t, and w(t, s) = weights_t of bucket `bit_length(t xor s) - 1`, t and s positions in their document.
    The state of bucket b is the decayed sum of k v^T of its tokens.

    A token with `valid` 0, k = v = 0 and g = 0 leaves the states and positions alone wherever it stands.

    The output [B, T, H, V] has v's dtype, the state is fp32 (fp64 for fp64 inputs). Chunks have 256 tokens.
    """

    q: Annotated[Tensor, "B T H K", "queries, any floating dtype"]
    k: Annotated[Tensor, "B T H K", "keys"]
    v: Annotated[Tensor, "B T H V", "values"]
    g: Annotated[Tensor, "B T H", LOG_DECAY]
    own: Annotated[Tensor, "B T H", "weight of the token itself"]
    weights: Annotated[Tensor, "B T H M", "weights of the buckets"]
    _: KW_ONLY
    start: Annotated[Tensor | None, "B", "tokens of the document before this call: which buckets are in use"] = None
    valid: Annotated[Tensor | None, "B T", "0 at padding, else 1; None: no padding"] = None
    scale: Annotated[float | None, OPTION, "of the queries; K^-0.5 if None"] = None

    states = ("B M H K V",)
    output = "v"

    def default_chunk_size(self) -> int:
        return 256

    def positions(self) -> Tensor:
        """[B, T + 1] int64: of each token, and of the one that would come next."""
        return count_positions(self.like.shape[:2], self.start, self.valid, self.segment_ids, self.like.device)

    def used(self) -> Tensor:
        """The initial state with zeros in the buckets that `start` does not have."""
        state = self.start_state()
        if self.start is None:
            return torch.zeros_like(state)
        buckets = torch.arange(self.sizes["M"], device=state.device)
        bits = self.start.long()[:, None] >> buckets
        last = buckets == self.sizes["M"] - 1
        return state * torch.where(last, bits > 0, bits % 2 > 0)[..., None, None, None].to(state.dtype)

    def naive(self) -> tuple[Tensor, Tensor]:
        buckets = torch.arange(self.sizes["M"], device=self.like.device)

        def advance(
            state: Tensor,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            g: Tensor,
            own: Tensor,
            weights: Tensor,
            at: Tensor,
            valid: Tensor,
        ) -> tuple[Tensor, Tensor]:
            position = at.long()[:, None]
            state = g.exp()[:, None, :, None, None] * state
            read = torch.einsum("bhk,bmhkv,bhm->bhv", q, state, weights)
            update = k.unsqueeze(-1) * v.unsqueeze(-2)
            read = read + (own * (q * k).sum(-1)).unsqueeze(-1) * v
            # The lowest 0 of the position is the bucket that takes the token and all smaller buckets.
            trailing = ((position >> buckets) % 2).cumprod(1)
            lowest = trailing.sum(1, keepdim=True).clamp(max=self.sizes["M"] - 1)
            merged = buckets <= lowest
            into = (buckets == lowest)[..., None, None, None].to(state.dtype)
            gone = merged[..., None, None, None].to(state.dtype)
            after = state * (1 - gone) + into * ((state * gone).sum(1) + update).unsqueeze(1)
            return read, torch.where(valid[:, None, None, None, None] > 0, after, state)

        query = self.q.to(self.dtype) * default_scale(self.scale, self.q)
        valid = torch.ones(self.like.shape[:2], device=self.like.device) if self.valid is None else self.valid
        self.state = self.used()
        arrays = (query, self.k, self.v, self.g, self.own, self.weights, self.positions()[:, :-1], valid)
        return self.each_token(advance, *arrays)

    def chunk(self) -> tuple[Tensor, Tensor]:
        chunk, keep, largest = self.chunk_length(), self.keep_chunks(), self._largest()
        query, key, value, decay = (to_chunks(x, chunk, self.dtype) for x in (self.q, self.k, self.v, self.g))
        query = query * default_scale(self.scale, self.q)
        weights = to_chunks(torch.cat([self.own.unsqueeze(-1), self.weights], -1), chunk, self.dtype)
        positions = self.positions()
        decay = decay.exp()
        if self.start is not None:
            state = self.used()[:, : largest + 1]
        else:
            shape = (self.sizes["B"], largest + 1, *(self.sizes[axis] for axis in "HKV"))
            state = self.like.new_zeros(shape, dtype=self.dtype)
        outputs = []
        for n in range(query.shape[0]):
            first, end = n * chunk, min((n + 1) * chunk, self.sizes["T"])
            at = F.pad(positions[:, first:end], (0, chunk - (end - first)))
            before = positions[:, first]  # of the state: of its document, where that goes on
            between, prefix, suffix, total = decay_products(decay[n] if keep is None else decay[n] * keep[n])
            level = bit_length(at[:, :, None] ^ at[:, None, :]).clamp(max=largest + 1)
            weight = weights[n].gather(-1, level.unsqueeze(1).expand(-1, weights[n].shape[1], -1, -1))
            out = ((query[n] @ key[n].mT) * between * weight) @ value[n]
            if n or self.start is not None:
                moved = self._moved(at, before)  # [B, C, M]: the bucket that each bucket of the state is in by then
                factor = weights[n].gather(-1, (moved + 1).unsqueeze(1).expand(-1, weights[n].shape[1], -1, -1))
                factor = factor * prefix.unsqueeze(-1)
                read = (query[n].unsqueeze(-2) * factor.unsqueeze(-1)).flatten(-2)
                out = out + read @ state.transpose(1, 2).flatten(2, 3)
            outputs.append(out)
            if n + 1 == query.shape[0] and not self.output_final_state:
                break
            next_at = positions[:, end]
            bucket = (bit_length(next_at[:, None] ^ at) - 1).clamp(0, largest)
            share = F.one_hot(bucket, largest + 1).to(self.dtype).unsqueeze(1) * suffix.unsqueeze(-1)
            written = (share.unsqueeze(-1) * key[n].unsqueeze(-2)).flatten(-2).mT @ value[n]
            target = F.one_hot(self._moved(next_at[:, None], before)[:, 0], largest + 1).to(self.dtype)
            kept = torch.einsum("bmn,bmhkv->bnhkv", target, state) * total[:, None, :, None, None]
            state = kept + written.unflatten(-2, (largest + 1, -1)).transpose(1, 2)
        if self.output_final_state and (unused := self.sizes["M"] - 1 - largest):
            state = F.pad(state, (0, 0, 0, 0, 0, 0, 0, unused))
        return from_chunks(torch.stack(outputs), self.sizes["T"], self.v.dtype), state

    def _largest(self) -> int:
        """The largest bucket that a token of this call can be in."""
        largest, tokens = self.sizes["M"] - 1, self.sizes["T"]
        if self.start is not None or not isinstance(tokens, int):  # a compiler's length may be any
            return largest
        return max(0, min(largest, tokens.bit_length() - 1))

    def _moved(self, at: Tensor, before: Tensor) -> Tensor:
        """[B, C, buckets]: the bucket, for a token at `at` [B, C], of what was in each one at position `before` [B]."""
        buckets = torch.arange(self._largest() + 1, device=at.device)
        jumped = bit_length(at ^ before[:, None]) - 1
        return torch.maximum(buckets, jumped.unsqueeze(-1)).clamp(max=self._largest())


def bit_length(x: Tensor) -> Tensor:
    """Of integers >= 0 below 2^31, int64."""
    powers = 2 ** torch.arange(31, device=x.device)
    return torch.bucketize(x, powers, right=True)


def count_positions(
    shape: torch.Size, start: Tensor | None, valid: Tensor | None, segment_ids: Tensor | None, device: torch.device
) -> Tensor:
    """[B, T + 1] int64: the position of each token in its document, counted in valid ones, and of the next one."""
    ones = torch.ones(shape, dtype=torch.long, device=device) if valid is None else valid.long()
    counted = F.pad(ones.cumsum(1), (1, 0))
    begun = torch.zeros_like(counted)
    if start is not None:
        begun = begun - start.long()[:, None]
    if segment_ids is None:
        return counted - begun
    starts = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 1), value=False)
    base = torch.where(starts, counted, begun).cummax(1).values
    return counted - base


log_linear_attention = Recurrence(LogLinearAttention, "log_linear_attention")
