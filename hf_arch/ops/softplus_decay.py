"""Log decays of softplus step sizes, -exp(A_h) softplus(x + b): of Gated DeltaNet, KDA and their relatives.

On a CPU forward and backward pass are one walk in C each (`ops/kernels/pointwise.c`), where
autograd takes three passes over memory and five. Elsewhere, and for other dtypes than fp32, it is plain torch.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .custom_op import manual_backward
from .native import Pointer, Struct, contiguous, fields, threads_for
from .pointwise import KERNELS
from .precision import state_dtype
from .softplus import softplus

ROWS = 32  # whose gradients of biases and rates a kernel sums, as in ops/kernels/pointwise.c


def softplus_decay(x: Tensor, rate_log: Tensor, bias: Tensor) -> Tensor:
    """-exp(A) softplus(x + b).

    Args:
        x: [..., H C], any floating dtype.
        rate_log: A [H]. bias: b [H C].

    Returns:
        [..., H, C] in the dtype of states, fp32 or fp64.
    """
    given = (x, rate_log, bias)
    fits = rate_log.dim() == 1 and x.shape[-1] == bias.numel() and x.shape[-1] % len(rate_log) == 0
    fp32 = all(each.dtype == torch.float32 for each in given)
    if fits and fp32 and not torch.compiler.is_compiling() and KERNELS.for_tensors(*given) is not None:
        return _Decay.apply(*given)
    return _plain(*given)


def biased(x: Tensor, rate_log: Tensor, bias: Tensor) -> Tensor:
    """x + b in the dtype of states, by head: [..., H, C]."""
    dtype = state_dtype(x)
    return (x.to(dtype) + bias.to(dtype)).unflatten(-1, (rate_log.numel(), -1))


def _plain(x: Tensor, rate_log: Tensor, bias: Tensor) -> Tensor:
    return -rate_log.to(state_dtype(x)).exp().unsqueeze(-1) * softplus(biased(x, rate_log, bias))


class _Decays(Struct):
    """What both kernels read, as `ops/kernels/pointwise.c` has it."""

    _fields_ = fields("rows width threads", "x bias factor")


class _Decay(torch.autograd.Function):
    """With f = -exp(A) and z = x + b: dL/dx = f sigmoid(z) dL/dy, dL/db = sum over rows of that, dL/dA = sum of
    y dL/dy. Saves its inputs alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate_log: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, rate_log, bias)
        y = torch.empty(x.shape, dtype=x.dtype)
        KERNELS.loaded().softplus_decays(_arguments(x, rate_log, bias), Pointer(y))
        return y.view(*x.shape[:-1], len(rate_log), -1)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            given = [each.view_as(each) for each in ctx.saved_tensors]
            inputs = [each for each in given if each.requires_grad]
            found = iter(torch.autograd.grad(_plain(*given), inputs, grad_y, create_graph=True))
            return tuple(next(found) if each.requires_grad else None for each in given)
        return _Decay.by_hand(ctx, grad_y)

    @staticmethod
    @manual_backward
    def by_hand(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        x, rate_log, bias = ctx.saved_tensors
        grad_x, width = torch.empty(x.shape, dtype=x.dtype), x.shape[-1]
        sums = bias.new_zeros(-(-x.numel() // max(1, width * ROWS)), 2, width)
        results = Pointer(grad_x), Pointer(sums)
        arguments = _arguments(x, rate_log, bias)
        KERNELS.loaded().softplus_decays_backward(arguments, Pointer(grad_y.contiguous()), *results)
        of_bias, of_rates = sums.sum(0)
        return grad_x, of_rates.view(len(rate_log), -1).sum(-1), of_bias


def _arguments(x: Tensor, rate_log: Tensor, bias: Tensor) -> Any:
    factor = rate_log.exp().neg_().repeat_interleave(x.shape[-1] // len(rate_log))
    rows = x.numel() // max(1, x.shape[-1])
    return ctypes.byref(_Decays(rows, x.shape[-1], threads_for(x), *contiguous(x, bias, factor)))
