"""Attention to a window of the last w tokens by blocks of queries: linear in the length, where a mask over all pairs of
tokens is quadratic.

Each block of C queries meets the W = C + R keys that end with its own last token, R >= w - 1. The blocks become rows of
the batch, so that any attention function computes them as they are: grouped heads, soft caps, sinks and dropout too.

Legend: B batch, T queries, S keys (the cached ones first), H heads, K width, N blocks, C queries and W keys of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64
"""C: the fastest of 32 to 256 for windows of 64 and 256, forward and backward (docs/performance.md)."""
PAYS_FROM = 1.5
"""With fewer keys than this many W, the mask over all pairs is as fast."""


class Band(NamedTuple):
    """Takes the place of a mask [B, 1, T, S] for attention in blocks.

    Attributes:
        mask: [B or 1, N, C, W] bool, what each query of a block sees.
        keys: [N W] int64, the key at each place of each block; one that no query sees where there is none.
        length: T. total: S.
    """

    mask: Tensor
    keys: Tensor
    length: int
    total: int

    def fold(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries [B, H, T, K], keys and values [B, Hkv, S, .] -> [B N, H, C, K], [B N, Hkv, W, .] twice, and the mask
        [B N, 1, C, W]."""
        batch, (_, blocks, size, width) = query.shape[0], self.mask.shape
        query = F.pad(query, (0, 0, 0, blocks * size - self.length)) if self.length < blocks * size else query
        query = query.transpose(1, 2).unflatten(1, (blocks, size)).flatten(0, 1).transpose(1, 2)
        key, value = (
            x.transpose(1, 2).index_select(1, self.keys).unflatten(1, (blocks, width)).flatten(0, 1).transpose(1, 2)
            for x in (key, value)
        )
        return query, key, value, self.mask.expand(batch, -1, -1, -1).flatten(0, 1).unsqueeze(1)

    def unfold(self, out: Tensor) -> Tensor:
        """The output of the blocks [B N, C, H, V] -> [B, T, H, V]."""
        return out.unflatten(0, (-1, self.mask.shape[1])).flatten(1, 2)[:, : self.length]

    def distances(self) -> Tensor:
        """[C, W] int64: how far before each query of a block each key is, as a number <= 0 where it may be seen."""
        size, width = self.mask.shape[2:]
        places = torch.arange(width, device=self.mask.device)
        return places - (width - size) - torch.arange(size, device=self.mask.device)[:, None]


def block_sizes(window: int) -> tuple[int, int]:
    """(C, W) for a window; W a multiple of 16."""
    return BLOCK, BLOCK - (1 - window) // 16 * 16


def pays(window: int, length: int, total: int) -> bool:
    """Whether blocks are faster than all pairs of `length` queries and `total` keys."""
    return length > 1 and total >= PAYS_FROM * block_sizes(window)[1]


def build_band(
    window: int, length: int, total: int, valid: Tensor | None, documents: Tensor | None, device: torch.device
) -> Band:
    """The band of the last `length` of `total` tokens, each over the last `window` tokens of its document.

    Args:
        valid: [B, S] bool, keys that are not padding, or None for all. documents: [B, S], or None for one a row.
    """
    size, width = block_sizes(window)
    blocks, first = -(-length // size), total - length - (width - size)
    begins = first + size * torch.arange(blocks, device=device)
    index = begins[:, None] + torch.arange(width, device=device)
    exists = index >= 0
    # Behind the last token a query sees itself: no softmax is empty, and nobody reads the result.
    index = index.clamp(0, total - 1)
    band = Band(exists[None, :, None].expand(1, blocks, size, width), index.flatten(), length, total)
    back = -band.distances()
    mask = exists[:, None] & ((back >= 0) & (back < window))
    mask = mask[None]
    if documents is not None:
        kept = documents[:, index]
        mask = mask & (kept[:, :, -size:, None] == kept[:, :, None])
    if valid is not None:
        mask = mask & (valid[:, index][:, :, None] | (back == 0))
    return band._replace(mask=mask)
