"""Mamba's selective scan with the products that its step sizes and weights are made of, in training on a CPU.

    [d, B, C] = W_x x,   dt = softplus(W_dt d + b),   y = selective_scan(x, dt, A, B, C, D, z)

The kernel of `selective_scan.py` makes the step sizes where it reads them, from the few numbers d of a token, so that
rows of all channels are neither written nor read for them, nor for their gradients; and what x gets through W_x is
added to the scan's gradient in place.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .custom_op import manual_backward
from .native import Pointer, Struct, fields, must_have_memory
from .selective_scan import CHUNK, GROUP, KERNELS, _Gradients, _Scan


def has_low_rank_scan(*tensors: Tensor) -> bool:
    """Whether `low_rank_scan` can be called with these."""
    if torch.is_autocast_enabled("cpu") or any(x.dtype != torch.float32 for x in tensors):
        return False
    return any(x.requires_grad for x in tensors) and KERNELS.for_tensors(*tensors) is not None


def low_rank_scan(
    x: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    z: Tensor,
    keep: Tensor | None,
) -> Tensor:
    """
    Args:
        x: [B, T, E]. x_weight: [R + 2 N, E]. dt_weight: [E, R]. dt_bias: [E]. A: [E, N], negative. D: [E].
        z: gates [B, T, E]. All fp32.
        keep: [B, T], 0 where a document starts, or None.

    Returns:
        y [B, T, E], the state before the row zero.
    """
    return _LowRankScan.apply(x, x_weight, dt_weight, dt_bias, A, D, z, keep)


class _LowRank(Struct):
    """As `ops/kernels/selective_scan.c` has it."""

    _fields_ = fields("rank row to_row", "low weight bias to_low to_weight to_bias")


class _LowRankScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x_weight: Tensor,
        dt_weight: Tensor,
        dt_bias: Tensor,
        A: Tensor,
        D: Tensor,
        z: Tensor,
        keep: Tensor | None,
    ) -> Tensor:
        x, z = x.contiguous(), z.contiguous()
        made = torch.mm(x.view(-1, x.shape[2]), x_weight.t()).view(*x.shape[:2], len(x_weight))
        A_t, weight = A.t().contiguous(), dt_weight.t().contiguous()
        state, y = x.new_zeros(len(x), *A_t.shape), x.new_empty(x.shape)
        kept = x.new_empty(-(-x.shape[1] // CHUNK), *state.shape)
        low = _LowRank(*_sizes(made, weight), Pointer(made, strided=True), weight, dt_bias)
        scan = _given(x, made, A_t, D, z, keep, low)
        kernels = KERNELS.loaded()
        must_have_memory(kernels.selective_scan(ctypes.byref(scan), Pointer(state), Pointer(y), Pointer(kept)))
        ctx.save_for_backward(x, x_weight, made, weight, dt_bias, A_t, D, z, keep, kept)
        return y

    @staticmethod
    @manual_backward
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, x_weight, made, weight, dt_bias, A_t, D, z, keep, kept = ctx.saved_tensors
        rank, (states, width) = len(weight), A_t.shape
        grad_x, grad_z = x.new_empty(x.shape), x.new_empty(x.shape)
        grad_state, grad_A = x.new_zeros(len(x), states, width), x.new_empty(len(x), states, width)
        grad_weight, grad_bias, grad_D = (x.new_empty(len(x), *like.shape) for like in (weight, dt_bias, D))
        grad_made = x.new_empty(-(-width // GROUP), *made.shape)
        of_low, of_B, of_C = (Pointer(part, strided=True) for part in _parts(grad_made, rank, states))
        given = Pointer(made, strided=True), weight, dt_bias
        low = _LowRank(*_sizes(made, weight), *given, of_low, grad_weight, grad_bias)
        scan = _given(x, made, A_t, D, z, keep, low)
        to = _Gradients(grad_state, grad_x, None, grad_A, of_B, of_C, grad_D, grad_z)
        kernels, pointers = KERNELS.loaded(), (Pointer(kept), Pointer(grad_y.contiguous()))
        must_have_memory(kernels.selective_scan_backward(ctypes.byref(scan), *pointers, ctypes.byref(to)))
        rows = grad_made.sum(0).view(-1, made.shape[2])
        grad_x.view(-1, width).addmm_(rows, x_weight)
        grad_x_weight = torch.mm(rows.t(), x.view(-1, width)) if ctx.needs_input_grad[1] else None
        sums = grad_weight.sum(0).t().contiguous(), grad_bias.sum(0), grad_A.sum(0).t().contiguous(), grad_D.sum(0)
        return grad_x, grad_x_weight, *sums, grad_z, None


def _parts(made: Tensor, rank: int, states: int) -> tuple[Tensor, ...]:
    """d, B and C of [..., R + 2 N]."""
    return made.split([rank, states, states], -1)


def _sizes(made: Tensor, weight: Tensor) -> tuple[int, ...]:
    return len(weight), made.shape[2], made.shape[2]


def _given(  # reads `low`, which the caller keeps
    x: Tensor, made: Tensor, A_t: Tensor, D: Tensor, z: Tensor, keep: Tensor | None, low: _LowRank
) -> _Scan:
    _, B, C = (Pointer(part, strided=True) for part in _parts(made, made.shape[2] - 2 * len(A_t), len(A_t)))
    sizes = (*x.shape, len(A_t), made.shape[2], made.shape[2], 1, torch.get_num_threads())
    return _Scan(*sizes, x, None, A_t, B, C, D, z, keep, ctypes.addressof(low))
