"""Rotary positions (Su et al. 2021) in half-split form: y = x cos + [-x_2, x_1] sin over the first features of a head.

With x_1, x_2 the halves of x and c, s those of the angles',

    y_1 = x_1 c_1 - x_2 s_1        dL/dx_1 = dL/dy_1 c_1 + dL/dy_2 s_2
    y_2 = x_2 c_2 + x_1 s_2        dL/dx_2 = dL/dy_2 c_2 - dL/dy_1 s_1

On a CPU both are one walk in C, where torch's operations take some ten passes over memory.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .backend import needs_gradients
from .custom_op import manual_backward
from .native import Kernels, Pointer, Struct, fields, threads_for

KERNELS = Kernels("rotary.c")


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, head_axis: int = 1) -> Tensor:
    """x with its first R features turned.

    Args:
        x: [B, H, T, K] (head_axis 1) or [B, T, H, K] (head_axis 2).
        cos, sin: [B or 1, T, R] with R <= K; features past R pass unchanged.
    """
    if torch.compiler.is_compiling() or needs_gradients(cos, sin) or not _readable(x, cos, sin, head_axis):
        return _plain(x, cos, sin, head_axis)
    if needs_gradients(x):
        return _Rotate.apply(x.float(), cos, sin, head_axis)
    return _by_kernel(x.float(), cos, sin, head_axis, backward=False)


def _readable(x: Tensor, cos: Tensor, sin: Tensor, head_axis: int) -> bool:
    """Whether there is a kernel, and these have the types and shapes that it reads; others torch repeats or refuses."""
    if x.dim() != 4 or cos.dim() != 3 or cos.shape != sin.shape or cos.shape[-1] % 2:
        return False
    batch, length, width = x.shape[0], x.shape[3 - head_axis], x.shape[3]
    fits = cos.shape[0] in (1, batch) and cos.shape[1] == length and cos.shape[2] <= width
    widened = x.dtype in (torch.float32, torch.bfloat16) and cos.dtype == sin.dtype == torch.float32
    return fits and widened and KERNELS.for_tensors(x, cos, sin) is not None


def _plain(x: Tensor, cos: Tensor, sin: Tensor, head_axis: int) -> Tensor:
    cos, sin = cos.unsqueeze(head_axis), sin.unsqueeze(head_axis)
    turned = cos.shape[-1]
    turn, rest = (x, None) if turned == x.shape[-1] else (x[..., :turned], x[..., turned:])
    first, second = turn.chunk(2, -1)
    turn = turn * cos + torch.cat((-second, first), -1) * sin
    return turn if rest is None else torch.cat((turn, rest), -1)


class _Rotate(torch.autograd.Function):
    """Saves the angles alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, head_axis: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.head_axis = head_axis
        return _by_kernel(x, cos, sin, head_axis, backward=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():  # create_graph=True: linear in the gradient, with angles the other way round
            cos, sin = ctx.saved_tensors  # once: under checkpoints a second look is an error
            return _plain(grad, cos, _turned_back(sin), ctx.head_axis), None, None, None
        return _Rotate.by_hand(ctx, grad)

    @staticmethod
    @manual_backward
    def by_hand(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        if grad.dtype != torch.float32 or KERNELS.for_tensors(grad, cos, sin) is None:
            return _plain(grad, cos, _turned_back(sin), ctx.head_axis), None, None, None
        return _by_kernel(grad, cos, sin, ctx.head_axis, backward=True), None, None, None


def _turned_back(sin: Tensor) -> Tensor:
    """What stands for sin in the gradient: the halves change places and sign."""
    first, second = sin.chunk(2, -1)
    return torch.cat((-second, -first), -1)


class _Rotation(Struct):
    """What the kernel reads, as `ops/kernels/rotary.c` has it."""

    _fields_ = fields(
        "batch heads length width turned x_batch x_head x_token y_batch y_head y_token angle_batch threads", "cos sin"
    )


def _by_kernel(x: Tensor, cos: Tensor, sin: Tensor, head_axis: int, backward: bool) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty_like(x)
    order = (0, head_axis, 3 - head_axis)  # batch, heads, length
    cos, sin = cos.contiguous(), sin.contiguous()
    rotation = _Rotation(
        *(x.shape[axis] for axis in order),
        x.shape[-1],
        cos.shape[-1],
        *(x.stride(axis) for axis in order),
        *(y.stride(axis) for axis in order),
        0 if len(cos) == 1 else cos.stride(0),
        threads_for(x),
        cos,
        sin,
    )
    KERNELS.for_tensors(x).rotary(
        ctypes.byref(rotation), ctypes.c_int64(backward), Pointer(x, strided=True), Pointer(y, strided=True)
    )
    return y
