"""The layout of chunk forms: time cut in chunks [N, B, H, C, .], and the batch in groups of rows for the cache's sake.

The Functions over chunks take arrays [N, B, H, C, .] of any strides and dtype: views of [B, T, H, .] cost no copy. The
state [B, H, K, V] has the dtype of all arithmetic, `keep` [N, B, 1, C] is 0 where a document starts, or None. They
return o [N, B, H, C, V] in v's dtype, a view of a contiguous [B, T, H, V], and the final state.

Legend: B batch, T time, H heads, N chunks, C chunk, D any width, M = N*B*H chunks of the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def chunk_length(length: int, chunk_size: int) -> int:
    """The power of two used as chunk: `chunk_size`, or less where the whole sequence is shorter.

    Raises:
        ValueError: if `chunk_size` is not a power of two.
    """
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        near = 1 << max(chunk_size, 1).bit_length()
        raise ValueError(f"chunk_size: {chunk_size} is not allowed; it must be a power of two, e.g. {near}")
    # Not the smaller of both: a length that a compiler leaves open has no number of bits.
    return chunk_size if length >= chunk_size else 1 << max(length - 1, 0).bit_length()


def chunk_view(x: Tensor, chunk: int, pad_value: float = 0.0) -> Tensor:
    """[B, T, H, ...] as [N, B, H, C, ...], the end padded with `pad_value` to whole chunks; a view where T is N * C."""
    missing = -x.shape[1] % chunk
    if missing:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing), value=pad_value)
    return x.unflatten(1, (-1, chunk)).movedim((1, 3), (0, 2))


def to_chunks(x: Tensor, chunk: int, dtype: torch.dtype, pad_value: float = 0.0) -> Tensor:
    """`chunk_view` made contiguous, in `dtype`."""
    x = chunk_view(x, chunk, pad_value)
    return x.to(dtype, memory_format=torch.contiguous_format).contiguous()  # a change of dtype copies once, not twice


def from_chunks(x: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """[N, B, H, C, D] to contiguous [B, T, H, D] in `dtype`, the padding of `to_chunks` removed."""
    x = x.movedim((0, 2), (1, 3)).flatten(1, 2)[:, :length]
    return x.to(dtype, memory_format=torch.contiguous_format).contiguous()


def row_groups(v: Tensor, values: int) -> list[slice]:
    """Equal slices of the batch of v [N, B, ...], at most `values` numbers a thread; one slice off the CPU."""
    batch = v.shape[1]
    count = 1
    if v.device.type == "cpu":
        count = min(batch, -(-v.numel() // (values * torch.get_num_threads())))
    size = -(-batch // count)
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def load_rows(x: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """A fresh contiguous [M, C, .] of rows of the batch of x [N, B, H, C, .]."""
    x = x[:, rows]
    return torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x).flatten(0, 2)


def load_keep(keep: Tensor | None, rows: slice, like: Tensor) -> Tensor | None:
    """keep [N, B, 1, C] as [M, C, 1] for some rows; `like` [N, B, H, C, .] has the heads."""
    return None if keep is None else keep[:, rows].expand(like[:, rows].shape[:-1]).reshape(-1, like.shape[-2], 1)


def stack_rows(first: Tensor | None, second: Tensor, rows: slice, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Rows of the batch of two tensors [N, B, H, C, D] as a fresh [M, 2C, D], the second times `scale`.

    Without a first one its place is left to be filled."""
    second = second[:, rows]
    stack = torch.empty(*second.shape[:3], 2, *second.shape[3:], dtype=dtype, device=second.device)
    if first is not None:
        stack[..., 0, :, :].copy_(first[:, rows])
    stack[..., 1, :, :].copy_(second)
    if scale != 1.0:
        stack[..., 1, :, :] *= scale
    return stack.flatten(3, 4).flatten(0, 2)


def store_rows(target: Tensor, rows: slice, values: Tensor) -> None:
    """values [M, C, .] into rows of the batch of target [N, B, H, C, .]."""
    part = target[:, rows]
    part.copy_(values.unflatten(0, part.shape[:3]))


def empty_in_time_order(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Like x [N, B, H, C, D], stored as [B, N, C, H, D]."""
    chunks, batch, heads, chunk, dim = x.shape
    return x.new_empty(batch, chunks, chunk, heads, dim, dtype=dtype).movedim((1, 3), (0, 2))


def empty_chunks(x: Tensor) -> Tensor:
    """Like x: in time order where it is [N, B, H, C, D], else in the order of its axes."""
    return empty_in_time_order(x) if x.dim() == 5 else x.new_empty(x.shape)
