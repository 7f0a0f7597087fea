"""Small helpers shared by the recurrences: document resets, the chunk layout, and the precision of states.

A packed row holds several documents. Every recurrence forgets at their borders by multiplying its state with `keep`,
which is 0 at the first token of a document and 1 elsewhere: exact, without the infinities of a log decay of -inf.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def segment_keep(segment_ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
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


def state_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of states and decays: fp32 whatever the activations, fp64 as soon as one of the tensors is."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Context in which products keep the dtype of their operands; states must not be rounded to bf16."""
    device = tensor.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def closed_gradient(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates the `backward` of a Function that works its gradient out by hand: products keep their dtype where a
    caller leaves autocast on around `loss.backward()`, and a second derivative is an error, not a wrong number.
    """

    @wraps(backward)
    def once(ctx: Any, *grads: Tensor) -> Any:
        # torch's `once_differentiable` puts its error where `torch.autograd.grad` does not look.
        if torch.is_grad_enabled():
            raise RuntimeError(f"{type(ctx).__name__} has no second derivative: create_graph=True is not allowed")
        with without_autocast(grads[0]):
            return backward(ctx, *grads)

    return once


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
