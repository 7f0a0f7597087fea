"""The documents of packed rows: a recurrence forgets where one ends and the next starts.

Chunk forms multiply the state with `document_keep`, which is 0 at the first token of a document and 1 elsewhere: exact,
without the infinities of a log decay of -inf. Kernels take the documents of all rows laid end to end, `find_documents`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def document_keep(segment_ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """0 where a document starts, 1 elsewhere.

    The first token continues: what was carried in (an initial state, a convolution's tail) belongs to its document.

    Args:
        segment_ids: [B, T] integers, constant inside a document. Only changes between neighbours matter.
        dtype: of the result.

    Returns:
        [B, T].
    """
    keep = (segment_ids[:, 1:] == segment_ids[:, :-1]).to(dtype)
    return F.pad(keep, (1, 0), value=1.0)


class Documents(NamedTuple):
    """The documents of a batch laid end to end: their borders [S + 1], and each row's first and last one [B]."""

    borders: Tensor
    first: Tensor
    last: Tensor


@lru_cache(maxsize=1)  # by identity: all layers of a call share one tensor, and reading it waits for the device
def find_documents(segment_ids: Tensor) -> Documents:
    """The S documents of `segment_ids` [B, T]; a row always starts one."""
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    borders = torch.cat([starts.flatten().nonzero().flatten(), starts.new_tensor([starts.numel()], dtype=torch.long)])
    last = starts.sum(1).cumsum(0) - 1
    return Documents(borders, last - starts.sum(1) + 1, last)
