"""A mix of each token with the one before it, by channel and for several streams: the token shift of RWKV.

    y^n_t = x_t + (x_{t-1} - x_t) * m_n

Where a gradient is needed on a CPU, all streams are one walk in C, forwards and backwards, where autograd takes five
passes over memory for each of them. Elsewhere, and for other dtypes than fp32, it is plain torch.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .custom_op import manual_backward
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
    tensors = (x, before, amounts)
    wanted = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
    fits = x.shape == before.shape and amounts.shape[1:] == x.shape[-1:] and len(amounts) <= STREAMS
    fp32 = all(each.dtype == torch.float32 for each in tensors)
    if wanted and fits and fp32 and not torch.compiler.is_compiling() and KERNELS.for_tensors(*tensors) is not None:
        return _Mix.apply(x, before, amounts)
    return _plain(x, before, amounts)


def _plain(x: Tensor, before: Tensor, amounts: Tensor) -> tuple[Tensor, ...]:
    move = before - x
    return tuple(torch.addcmul(x, move, amount) for amount in amounts)


class _Arguments(Struct):
    """What both kernels read, as `ops/kernels/token_mix.c` has it."""

    _fields_ = fields("rows width streams threads", "x before amounts")


class _Gradients(Struct):
    _fields_ = fields("", " ".join([*(f"grad_{n}" for n in range(STREAMS)), "x before amounts"]))


class _Mix(torch.autograd.Function):
    """With G the sum over n of m_n dL/dy_n: dL/dx = sum_n dL/dy_n - G, dL/dbefore = G and dL/dm_n = sum over tokens of
    (before - x) dL/dy_n. Saves its inputs alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor, amounts: Tensor) -> tuple[Tensor, ...]:
        x, before, amounts = (each.contiguous() for each in (x, before, amounts))  # once for both passes
        ctx.save_for_backward(x, before, amounts)
        y = x.new_empty(len(amounts), *x.shape)
        KERNELS.for_tensors(x, before, amounts).token_mix(ctypes.byref(_arguments(x, before, amounts)), Pointer(y))
        return y.unbind(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            x, before, amounts = ctx.saved_tensors
            return _plain_gradients(x, before, amounts, grads)
        return _Mix.by_hand(ctx, *grads)

    @staticmethod
    @manual_backward
    def by_hand(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, before, amounts = ctx.saved_tensors
        kernels = KERNELS.for_tensors(x, before, amounts, *grads)
        if kernels is None or any(grad.dtype != torch.float32 for grad in grads):
            return _plain_gradients(x, before, amounts, grads)
        grad_x, grad_before = (x.new_empty(x.shape) for _ in range(2))
        rows = x.numel() // max(1, x.shape[-1])
        parts = amounts.new_zeros(-(-rows // ROWS), *amounts.shape)
        given = [*contiguous(*grads), *[None] * (STREAMS - len(grads))]
        to = _Gradients(*given, grad_x, grad_before, parts)
        kernels.token_mix_backward(ctypes.byref(_arguments(x, before, amounts)), ctypes.byref(to))
        return grad_x, grad_before, parts.sum(0)


def _arguments(x: Tensor, before: Tensor, amounts: Tensor) -> _Arguments:
    rows = x.numel() // max(1, x.shape[-1])
    return _Arguments(rows, x.shape[-1], len(amounts), threads_for(x), *contiguous(x, before, amounts))


def _plain_gradients(
    x: Tensor, before: Tensor, amounts: Tensor, grads: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    move, moved = before - x, sum(grad * amount for grad, amount in zip(grads, amounts, strict=True))
    assert isinstance(moved, Tensor)
    over_tokens = torch.stack([(grad * move).flatten(0, -2).sum(0) for grad in grads])
    return torch.stack(grads).sum(0) - moved, moved, over_tokens
