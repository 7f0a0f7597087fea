"""A mix of each token with the one before it, by channel and for several streams: the token shift of RWKV.

    y^n_t = x_t + (x_{t-1} - x_t) * m_n

On a CPU all streams are one walk in C, forwards and backwards, where autograd takes five
passes over memory for each of them. Elsewhere, and for other dtypes than fp32, it is plain torch.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .conv import token_shift
from .custom_op import manual_backward
from .documents import document_keep
from .native import Kernels, Pointer, Struct, contiguous, fields, threads_for

KERNELS = Kernels("token_mix.c")
ROWS, STREAMS = 32, 8  # as in ops/kernels/token_mix.c


def token_mix(x: Tensor, before: Tensor, amounts: Tensor) -> tuple[Tensor, ...]:
    """x + (before - x) * m for each m of `amounts`.

    Args:
        x: [..., D], floating. before: x's shape, the tokens before.
        amounts: [N, D].

    Returns:
        N tensors [..., D], in the dtype that torch's product has.
    """
    if x.shape == before.shape and _is_native(x, before, amounts):
        return _Mix.apply(x, before, amounts, None)
    return _plain(x, before, amounts)


def shifted_token_mix(x: Tensor, amounts: Tensor, segment_ids: Tensor | None) -> tuple[Tensor, ...]:
    """`token_mix` of rows of tokens with those before, zeros before the first of a document: the kernels need no copy
    of them.

    Args:
        x: [B, T, D], floating.
        amounts: [N, D].
        segment_ids: [B, T] integers, one per document of a packed row.

    Returns:
        N tensors [B, T, D].
    """
    if x.numel() and _is_native(x, None, amounts):
        return _Mix.apply(x, None, amounts, None if segment_ids is None else document_keep(segment_ids))
    return token_mix(x, token_shift(x, segment_ids=segment_ids)[0], amounts)


def _is_native(x: Tensor, before: Tensor | None, amounts: Tensor) -> bool:
    tensors = [each for each in (x, before, amounts) if each is not None]
    fits = amounts.shape[1:] == x.shape[-1:] and len(amounts) <= STREAMS
    fp32 = all(each.dtype == torch.float32 for each in tensors)
    return fits and fp32 and not torch.compiler.is_compiling() and KERNELS.for_tensors(*tensors) is not None


def _plain(x: Tensor, before: Tensor, amounts: Tensor) -> tuple[Tensor, ...]:
    move = before - x
    return tuple(torch.addcmul(x, move, amount) for amount in amounts)


class _Arguments(Struct):
    """What both kernels read, as `ops/kernels/token_mix.c` has it."""

    _fields_ = fields("rows width streams length threads", "x before amounts keep")


class _Gradients(Struct):
    _fields_ = fields("", " ".join([*(f"grad_{n}" for n in range(STREAMS)), "x before amounts"]))


class _Mix(torch.autograd.Function):
    """With G the sum over n of m_n dL/dy_n: dL/dx = sum_n dL/dy_n - G, dL/dbefore = G and dL/dm_n = sum over tokens of
    (before - x) dL/dy_n. Without `before` it is x moved by one token where keep [B, T] is not 0, and dL/dx gets that
    of it. Saves its inputs alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor | None, amounts: Tensor, keep: Tensor | None) -> tuple[Tensor, ...]:
        saved: Any = contiguous(x, before, amounts, keep)  # once for both passes
        ctx.save_for_backward(*saved)
        y = x.new_empty(len(amounts), *x.shape)
        KERNELS.loaded().token_mix(_arguments(*saved), Pointer(y))
        return y.unbind(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            x, before, amounts, keep = ctx.saved_tensors
            return (*_plain_gradients(x, before, amounts, keep, grads), None)
        return (*_Mix.by_hand(ctx, *grads), None)

    @staticmethod
    @manual_backward
    def by_hand(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, before, amounts, keep = ctx.saved_tensors
        kernels = KERNELS.for_tensors(x, before, amounts, *grads)
        if kernels is None or any(grad.dtype != torch.float32 for grad in grads):
            return _plain_gradients(x, before, amounts, keep, grads)
        grad_x, grad_before = x.new_empty(x.shape), None if before is None else x.new_empty(x.shape)
        rows = x.numel() // max(1, x.shape[-1])
        parts = amounts.new_zeros(-(-rows // ROWS), *amounts.shape)
        given = [*contiguous(*grads), *[None] * (STREAMS - len(grads))]
        to = _Gradients(*given, grad_x, grad_before, parts)
        kernels.token_mix_backward(_arguments(x, before, amounts, keep), ctypes.byref(to))
        return grad_x, grad_before, parts.sum(0)


def _arguments(x: Tensor, before: Tensor | None, amounts: Tensor, keep: Tensor | None) -> Any:
    rows, length = x.numel() // max(1, x.shape[-1]), x.shape[-2] if x.dim() > 1 else 1
    sizes = rows, x.shape[-1], len(amounts), length, threads_for(x)
    return ctypes.byref(_Arguments(*sizes, x, before, amounts, keep))


def _plain_gradients(
    x: Tensor, before: Tensor | None, amounts: Tensor, keep: Tensor | None, grads: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor | None, Tensor]:
    moved = sum(grad * amount for grad, amount in zip(grads, amounts, strict=True))
    assert isinstance(moved, Tensor)
    move = (_shifted(x, keep) if before is None else before) - x
    over_tokens = torch.stack([(grad * move).flatten(0, -2).sum(0) for grad in grads])
    grad_x = torch.stack(grads).sum(0) - moved
    if before is not None:
        return grad_x, moved, over_tokens
    kept = moved if keep is None else moved.where(keep.unsqueeze(-1) != 0, 0)
    return grad_x + F.pad(kept[:, 1:], (0, 0, 0, 1)), None, over_tokens


def _shifted(x: Tensor, keep: Tensor | None) -> Tensor:
    before = F.pad(x[:, :-1], (0, 0, 1, 0))
    return before if keep is None else before.where(keep.unsqueeze(-1) != 0, 0)
