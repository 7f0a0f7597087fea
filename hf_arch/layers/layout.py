"""Where the valid tokens of a batch are, worked out once per model call for every layer that keeps a recurrent state.

A recurrent layer needs padding to be a no-op for its state and documents in a packed row to start from an empty one.
Tokens that are padded on the left before any state exists are no-ops already (zero input into a zero state). In any
other case (right padding, padding in the middle or next to documents, a padded chunk after a filled cache) the rows are
reordered so that the valid tokens come first: convolution windows and states then meet no gap, and the state to keep is
the one after the last valid token. A compiler cannot look, so that a graph with a mask always reorders.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SequenceLayout(NamedTuple):
    """Which tokens of [B, T] are valid and to which document they belong; all fields None for a plain batch.

    Attributes:
        mask: [B, T] bool, True at valid tokens (in the reordered rows where `order` is set).
        segment_ids: [B, T] int64, the document of each token in a packed row.
        order: [B, T] int64, the source position of each reordered token.
        inverse: [B, T] int64, the inverse permutation of `order`.
        num_valid: [B] int64, the valid tokens of each row; set together with `order`.
    """

    mask: Tensor | None = None
    segment_ids: Tensor | None = None
    order: Tensor | None = None
    inverse: Tensor | None = None
    num_valid: Tensor | None = None

    def compact(self, x: Tensor) -> Tensor:
        """Reorder [B, T, ...] where the layout asks for it and set padding to zero."""
        return self.zero_padding(self.reorder(x))

    def reorder(self, x: Tensor) -> Tensor:
        """Reorder [B, T, ...] (or [1, T, ...], the same for every row) without masking."""
        if self.order is None:
            return x
        return _gather(x.expand(self.order.shape[0], *x.shape[1:]), self.order)

    def restore(self, x: Tensor) -> Tensor:
        """Put [B, T, ...] back into the order in which the tokens came."""
        return x if self.inverse is None else _gather(x, self.inverse)

    def zero_padding(self, x: Tensor) -> Tensor:
        """Set [B, T, ...] to zero at padding (for what a bias made nonzero after `compact`)."""
        if self.mask is None:
            return x
        return x * self.mask.view(*self.mask.shape, *([1] * (x.dim() - 2))).to(x.dtype)

    def enter(self, x: Tensor) -> Tensor:
        """`compact`, in users' files that are older than 0.1."""
        return self.compact(x)

    def leave(self, x: Tensor) -> Tensor:
        """`restore`, in users' files that are older than 0.1."""
        return self.restore(x)


PLAIN_LAYOUT = SequenceLayout()
"""A batch without padding or documents."""


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Tokens `index` [B, T] of x [B, T, ...]; whole rows of features are copied, which an elementwise gather is not."""
    first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (index + first).flatten()).view_as(x)


def build_layout(padding_mask: Tensor | None, segment_ids: Tensor | None, has_state: bool) -> SequenceLayout:
    """The layout of one model call.

    Args:
        padding_mask: [B, T] for the tokens of this call (1 = valid), or None.
        segment_ids: [B, T] documents of a packed row, numbered upwards, or None.
        has_state: whether the cache holds earlier tokens.
    """
    if padding_mask is None:
        return SequenceLayout(segment_ids=segment_ids)
    mask = padding_mask.bool()
    if not torch.compiler.is_compiling():  # a graph cannot branch on data; it always takes the general way
        if bool(mask.all()):
            return SequenceLayout(segment_ids=segment_ids)
        left_padded = not bool((mask[:, :-1] & ~mask[:, 1:]).any())
        if left_padded and not has_state and segment_ids is None:
            return SequenceLayout(mask=mask)
    num_valid, index = mask.sum(1), torch.arange(mask.shape[1], device=mask.device)
    inverse = torch.where(mask, mask.cumsum(1), num_valid[:, None] + (~mask).cumsum(1)) - 1
    order = torch.zeros_like(inverse).scatter(1, inverse, index.expand_as(inverse))
    if segment_ids is not None:
        # Padding behind the valid tokens belongs to the last document: it must not make the state start anew.
        last = torch.where(mask, segment_ids, 0).amax(1, keepdim=True)
        segment_ids = torch.where(mask, segment_ids, last).gather(1, order)
    return SequenceLayout(index < num_valid[:, None], segment_ids, order, inverse, num_valid)


def positions_from_mask(attention_mask: Tensor, length: int) -> Tensor:
    """Positions that count valid tokens only, [B, length]: the last `length` columns of the running count of a 2-D
    mask."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_(min=0)[:, -length:]
