"""Keys in blocks of equal size, counted from the start of each document: what block-sparse attention chooses from.

Legend: B batch (1 where rows are the same), T tokens of this call, S keys, N blocks, H heads, K key dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .key_positions import KeyPositions


class KeyBlocks(NamedTuple):
    """The blocks of all documents of a row, in order.

    Attributes:
        of_key: [B, S] int64, the block of each key; N for padding.
        number: N, of the row with the most.
        own: [B, T] int64, the block of each query.
        first: [B, T] int64, the first block of each query's document.
        finished: [B, T, N] bool: blocks of the query's document all of whose tokens are no later than the query.
    """

    of_key: Tensor
    number: int
    own: Tensor
    first: Tensor
    finished: Tensor

    def means(self, x: Tensor) -> Tensor:
        """[B, H, S, K] -> the mean of each block in fp32, [B, H, N, K]; 0 where there is no key."""
        index = self.of_key.expand(x.shape[0], -1)
        spread = index[:, None, :, None].expand_as(x)
        sums = x.new_zeros(*x.shape[:2], self.number + 1, x.shape[3], dtype=torch.promote_types(x.dtype, torch.float32))
        sums = sums.scatter_add(2, spread, x.to(sums.dtype))
        sizes = sums.new_zeros(index.shape[0], self.number + 1)
        sizes = sizes.scatter_add(1, index, sums.new_ones(1, 1).expand_as(index))
        return (sums / sizes.clamp(min=1)[:, None, :, None])[:, :, :-1]

    def spread(self, chosen: Tensor) -> Tensor:
        """What holds for blocks [B, H, T, N] bool, for their keys [B, H, T, S]; False at padding."""
        padded = torch.nn.functional.pad(chosen, (0, 1))
        index = self.of_key.expand(chosen.shape[0], -1)[:, None, None]
        return padded.gather(3, index.expand(-1, *chosen.shape[1:3], -1))


def key_blocks(keys: KeyPositions, size: int) -> KeyBlocks:
    """Blocks of `size` tokens of the keys."""
    starts = keys.keys % size == 0
    if keys.valid is not None:
        starts = starts & keys.valid
    index = (starts.long().cumsum(1) - 1).clamp(min=0)
    total = index.shape[1]
    if keys.documents is None:
        count = -(-total // size)
    else:
        count = total if torch.compiler.is_compiling() else int(index.max()) + 1
    if keys.valid is not None:
        index = torch.where(keys.valid, index, count)
    own = keys.of_call(index)
    position = keys.queries
    first = (own - position // size).clamp(min=0)
    # The full block m of a document ends with its token (m + 1) size - 1.
    blocks = torch.arange(count, device=index.device)
    complete = own + ((position + 1) % size == 0).long()
    finished = (blocks >= first[..., None]) & (blocks < complete[..., None])
    return KeyBlocks(index, count, own, first, finished)


def largest(scores: Tensor, count: int) -> Tensor:
    """[..., min(count, N)], where the largest of scores [..., N] are. Of equal ones the first, so that the choice does
    not depend on what lies behind them, as that of `topk` does."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
