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
        self.weights: Tensor | None = None
        self.shapes: list[tuple[str, int]] = []

    def add(self, batch: Mapping[str, Any]) -> None:
        """Rows of whole numbers, [B, T] under each key; what has another form, as positions [1, T] of all, is left
        out."""
        found = {
            key: value.detach() for key in _KEYS if isinstance(value := batch.get(key), Tensor) and value.ndim == 2
        }
        if not found:
            return
        rows = max(map(len, found.values()))
        found = {key: value for key, value in found.items() if len(value) == rows}
        shapes = [(key, value.shape[1]) for key, value in found.items()]
        if shapes != self.shapes:
            device = next(iter(found.values())).device
            self.shapes, self.weights = shapes, torch.cat([_weights(*one) for one in shapes]).to(device)
        assert self.weights is not None
        sums = (torch.cat(list(found.values()), 1).to(torch.int64) * self.weights).sum(1)
        sums = (sums ^ (sums >> _SHIFT)) * _FACTOR
        places = torch.arange(2 * self.count + 1, 2 * (self.count + len(sums)), 2, device=sums.device)
        total = ((sums ^ (sums >> _SHIFT)) * places).sum()
        self.total = total if self.total is None else self.total + total
        self.count += len(sums)

    def watched(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
        """The same batches, each added once the next one is asked for."""
        for batch in batches:
            yield batch
            self.add(batch)

    def digest(self) -> str | None:
        """Sixteen digits; None without rows."""
        return None if self.total is None else f"{int(self.total) % 2**64:016x}"


def _weights(key: str, length: int) -> Tensor:
    """An odd number of each place of a row, [T]."""
    return (2 * torch.arange(length) + 2 * zlib.crc32(key.encode()) + 1) * _FACTOR
