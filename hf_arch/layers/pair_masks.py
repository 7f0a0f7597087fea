"""Attention masks over pairs of tokens: what they say of documents and padding, and their windows.

Legend: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

MASKED = -1e4
"""An additive mask hides a key by this or less."""


class Blocks(NamedTuple):
    """A mask over pairs [B, H, T, T], read as documents.

    Attributes:
        valid: [B, T] bool: tokens that see themselves; the others are padding.
        first_key: [B, T] int64, the first key that each token sees: equal within a document; -1 at padding.
        readable: [B] bool: whether the mask is causal within documents of neighbouring tokens, and nothing else.
    """

    valid: Tensor
    first_key: Tensor
    readable: Tensor


def pairs_as_blocks(mask: Tensor) -> Blocks:
    """Read a mask [B, H, T, T], bool (True = seen) or additive. What a padded query sees is of no account."""
    if mask.dtype == torch.bool:
        seen, exact = mask, mask.new_ones(mask.shape[0])
    else:
        seen = mask > MASKED
        exact = ((mask == 0) | ~seen).flatten(1).all(1)
    if mask.shape[1] > 1:
        exact = exact & (seen == seen[:, :1]).flatten(1).all(1)
    seen = seen[:, 0]
    valid = seen.diagonal(dim1=1, dim2=2)
    first_key = torch.where(valid, seen.int().argmax(-1), -1)
    causal = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril()
    expected = causal & valid[:, None] & (first_key[:, :, None] == first_key[:, None])
    as_expected = ((seen == expected) | ~valid[:, :, None]).flatten(1).all(1)
    neighbours = ((first_key.cummax(1).values == first_key) | ~valid).all(1)
    return Blocks(valid, first_key, exact & as_expected & neighbours)


def valid_tokens(mask: Tensor, length: int) -> Tensor:
    """[B or 1, length] bool, the last tokens of a mask over tokens [B, S] that are not 0, or of one over pairs
    [B, T, S] or [B, H, T, S] that see themselves."""
    if mask.dim() == 2:
        return mask[:, -length:].bool()
    seen = (mask > MASKED if mask.is_floating_point() else mask.bool())[..., -length:]
    return seen.flatten(1, -3)[:, 0].diagonal(dim1=1, dim2=2) if mask.dim() == 4 else seen.diagonal(dim1=1, dim2=2)


def within_window(mask: Tensor, window: int, cache: Cache | None, index: int) -> Tensor:
    """A finished mask [B, H, T, S] cut to what layer `index` sees: the last `window` tokens."""
    length, keys = mask.shape[-2:]
    query_offset = 0 if cache is None else cache.get_query_offset(index)
    key_offset = 0 if cache is None else cache.get_mask_sizes(length, index)[1]
    queries = torch.arange(length, device=mask.device) + query_offset
    near = queries[:, None] - (torch.arange(keys, device=mask.device) + key_offset) < window
    return mask & near if mask.dtype == torch.bool else mask.masked_fill(~near, torch.finfo(mask.dtype).min)


def unreadable_pairs(what: str) -> str:
    """The line for a mask that a recurrent layer cannot follow."""
    return (
        f"attention_mask: recurrent layers, and those that read key positions, cannot follow {what}; "
        "allowed: [B, T] for padding, or one that is causal within documents; describe documents by position_ids "
        "that restart at 0"
    )
