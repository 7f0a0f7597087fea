"""Which rows a model was really given, in training and in a score, whatever its recipe says of their order.

A plugin may put other rows in the place of those that the order names, mask some of their labels, or do either where a
model is scored. Over rows r_1, r_2, ... of whole numbers (tokens, labels, positions) there is one number,

    h = sum_i (2 i + 1) mix(sum_j w_j r_ij)   modulo 2^64

the same however rows are shared out over batches. It is taken after the model had them, so that what is changed in
them in a forward pass counts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_FACTOR, _SHIFT = 0x1E3779B97F4A7C15, 29
_KEYS = ("input_ids", "labels", "shift_labels", "position_ids")


class GivenRows:
    """The number of the rows that were added so far. It stays on their device until it is asked for."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None

    def add(self, batch: Mapping[str, Any]) -> None:
        """Rows of whole numbers, [B, ...] under each key."""
        found = {key: value for key in _KEYS if isinstance(value := batch.get(key), Tensor) and value.ndim}
        if not found:
            return
        rows = sum(_mixed(value, zlib.crc32(key.encode())) for key, value in found.items())
        assert isinstance(rows, Tensor)
        places = torch.arange(self.count, self.count + len(rows), device=rows.device)
        total = ((2 * places + 1) * rows).sum()
        self.total = total if self.total is None else self.total + total
        self.count += len(rows)

    def watched(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
        """The same batches, each added once the next one is asked for."""
        for batch in batches:
            yield batch
            self.add(batch)

    def digest(self) -> str | None:
        """Sixteen digits; None without rows."""
        return None if self.total is None else f"{int(self.total) % 2**64:016x}"


def _mixed(values: Tensor, key: int) -> Tensor:
    """A number of each row of int64 [B, ...], all of whose bits rest on all of it."""
    flat = values.detach().flatten(1).to(torch.int64) if values.ndim > 1 else values.detach()[:, None].to(torch.int64)
    weights = (2 * torch.arange(flat.shape[1], device=flat.device) + 2 * key + 1) * _FACTOR
    sums = (flat * weights).sum(1)
    sums = (sums ^ (sums >> _SHIFT)) * _FACTOR
    return sums ^ (sums >> _SHIFT)
