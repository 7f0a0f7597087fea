"""Tokens laid out in blocks of one size, for attention that treats blocks as units.

Each document starts a block of its own and padding takes no place, so that a token's block and its slot there depend on
the document's earlier tokens alone. Rows may differ: each has its own documents and its own number of tokens.

Legend: B batch, T time, H heads, K width, C block size, N blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BlockPlan(NamedTuple):
    """Where the tokens of [B, T] go, and where each row's last document stands after them.

    Attributes:
        place: [B, T] int64, block * C + slot of each token; N * C for padding.
        num_blocks: N, of the row that needs most.
        document: [B, N] int64, the document of each block, or None where a row has only one.
        first_block: [B] int64, the last document's first block.
        finished: [B] int64, its blocks that are full now.
        running: [B] int64, the tokens in its unfinished block, 0 <= running < C.
    """

    place: Tensor
    num_blocks: int
    document: Tensor | None
    first_block: Tensor
    finished: Tensor
    running: Tensor


def plan_blocks(
    valid: Tensor | None, segment_ids: Tensor | None, running: Tensor, shape: tuple[int, int], block_size: int
) -> BlockPlan:
    """The plan for rows of `shape` [B, T].

    Args:
        valid: [B, T] bool, or None for all.
        segment_ids: [B, T], documents of packed rows (then all tokens are valid and `running` is 0), or None.
        running: [B] int64, tokens that wait in each row's unfinished block 0.
    """
    batch, length = shape
    valid = torch.ones(shape, dtype=torch.bool, device=running.device) if valid is None else valid
    position = running[:, None] + valid.long().cumsum(1) - 1
    if segment_ids is not None:
        starts = torch.ones_like(valid)
        starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
        position = position - torch.where(starts, position, 0).cummax(1).values
    new_block = valid & (position % block_size == 0)
    block = new_block.long().cumsum(1) - (running == 0).long()[:, None]
    tokens = torch.where(valid.any(1), position[:, -1] + 1, running)
    if segment_ids is None:
        num_blocks = -(-(length + block_size - 1) // block_size)
        document, first_block = None, torch.zeros_like(running)
    else:
        num_blocks = int(block.max()) + 1
        document = block.new_zeros(batch, num_blocks).scatter_(1, block, starts.long().cumsum(1))
        first_block = block[:, -1] - (tokens - 1) // block_size
    place = torch.where(valid, block * block_size + position % block_size, num_blocks * block_size)
    return BlockPlan(place, num_blocks, document, first_block, tokens // block_size, tokens % block_size)


def to_blocks(x: Tensor, plan: BlockPlan, block_size: int, running: Tensor | None = None) -> Tensor:
    """[B, H, T, K] tokens -> [B, H, N, C, K], zeros where there is none; `running` [B, H, C, K] starts block 0."""
    total = plan.num_blocks * block_size
    blocks = x.new_zeros(*x.shape[:2], total + 1, x.shape[3])
    if running is not None:
        blocks[:, :, : running.shape[2]] = running
    index = plan.place[:, None, :, None].expand_as(x)
    return blocks.scatter(2, index, x)[:, :, :total].unflatten(2, (-1, block_size))


def from_blocks(blocks: Tensor, plan: BlockPlan) -> Tensor:
    """[B, H, N, C, K] -> [B, H, T, K]; padding gets some token's values."""
    flat = blocks.flatten(2, 3)
    place = plan.place.clamp(max=flat.shape[2] - 1)
    return flat.gather(2, place[:, None, :, None].expand(-1, flat.shape[1], -1, flat.shape[3]))
