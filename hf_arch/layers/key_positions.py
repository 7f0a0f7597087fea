"""Where the keys of an attention layer are: the cached ones first, then those of this call.

The decoder works this out once per model call and kind of layer, and only where a layer asks for it
(`Mixer.needs_key_positions`). Positions count the valid tokens of a document from 0, so that a bias or a block made
from them is the same under padding, in packed rows and from a cache of any kind.

Legend: B batch (1 where all rows are the same), T tokens of this call, S keys of the layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class KeyPositions(NamedTuple):
    """See above. What a padded token sees is of no account; it always sees itself, so that no softmax is empty.

    Attributes:
        slots: [T] int64, where each token of this call is among the S keys.
        queries: [B, T] int64, the position of each token of this call within its document.
        keys: [B, S] int64, the same of each key.
        visible: [B, T, S] bool: keys that are no later, in the token's document and window, and not padding.
        valid: [B, S] bool, keys that are not padding; None where all are.
        documents: [B, S] int64, the document of each key; None where each row is one.
    """

    slots: Tensor
    queries: Tensor
    keys: Tensor
    visible: Tensor
    valid: Tensor | None = None
    documents: Tensor | None = None

    def contiguous(self) -> KeyPositions:
        """Of every tensor; `generate` asks it of all masks before a compiled step."""
        return KeyPositions._make(None if x is None else x.contiguous() for x in self)

    def of_call(self, x: Tensor) -> Tensor:
        """[B, S] -> [B, T], the entries of this call's tokens."""
        return x[:, self.slots]

    def zero_padding(self, x: Tensor) -> Tensor:
        """[B, T, ...] of this call's tokens, 0 at padding."""
        if self.valid is None:
            return x
        kept = self.of_call(self.valid)
        return torch.where(kept.view(*kept.shape, *([1] * (x.dim() - 2))), x, 0)


def key_positions(
    shape: tuple[int, int],
    keys: tuple[int, Any, Any],
    mask: Tensor | None,
    segment_ids: Tensor | None,
    window: int | None,
    device: torch.device,
) -> KeyPositions:
    """The keys of one kind of layer.

    Args:
        shape: (B, T). keys: (S, the row's token that the first key is, tokens before this call).
        mask: [B, N] over the row's tokens (1 = valid), or None. segment_ids: [B, T] for an empty cache, or None.
        window: in valid tokens, or None.
    """
    batch, length = shape
    total, offset, past = keys
    index = torch.arange(total, device=device)
    slots = torch.arange(length, device=device) + (past - offset)
    row = index + offset
    valid = documents = None
    if mask is None:
        counted = row[None]
    else:
        mask = mask.to(device).bool()
        inside = row.clamp(max=mask.shape[1] - 1)
        valid = mask[:, inside] & (row < mask.shape[1])
        counted = (mask.long().cumsum(1) - 1).clamp(min=0)[:, inside]
    positions = counted
    visible = (index <= slots[:, None])[None]
    if valid is not None:
        visible = visible & valid[:, None]
    if segment_ids is not None:
        starts = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, total - length), value=False)
        positions = (counted - torch.where(starts, counted, 0).cummax(1).values).expand(batch, -1)
        documents = F.pad(segment_ids, (0, total - length), value=-1)
        visible = visible & (documents[:, slots, None] == documents[:, None])
    if window is not None:
        visible = visible & (counted[:, slots, None] - counted[:, None] < window)
    visible = visible | (index == slots[:, None])
    return KeyPositions(slots, positions[:, slots], positions, visible, valid, documents)
