r"""State space duality (`ssd.py`) by a C kernel: chunks of 32 tokens whose products of matrices stay in the cache.

    W_ij = C_i . B_j d_{j+1} ... d_i for j <= i      d_i = exp(dt_i A), 0 where a document starts      u_j = dt_j x_j
    y_i = p_i S C_i + sum_j W_ij u_j + D x_i         p_i = d_1 ... d_i, what is left of S, the state before the chunk
    S' = p_L S + sum_j f_j u_j B_j^T                 f_j = d_{j+1} ... d_L

A chunk form in torch takes a pass over memory for each scaling by decays, and copies for products; here decays scale
what is in registers or in the first cache. Only products of numbers in [0, 1] are formed, as in `decay.py`. Backwards,
with R the gradient of S', V_ij = d_{j+1} ... d_i (dL/dy_i . u_j), and those of B and C summed over a group's heads,

    dL/du_j = f_j R B_j + sum_i W_ij dL/dy_i         dL/dB_j = f_j R^T u_j + sum_i V_ij C_i
    dL/dS = p_L R + sum_i p_i dL/dy_i C_i^T          dL/dC_i = p_i S^T dL/dy_i + sum_j V_ij B_j

where a first walk is forwards, for the states and dL/dC, and a second backwards. The gradient of a log decay adds up
all that d_t is a factor of, while `vector_decay.py` subtracts sums that mostly cancel; it is exact where d_t vanishes:

    dL/d(dt_t A) = sum_{j < t <= i} V_ij C_i . B_j  +  sum_{i >= t} p_i C_i . S^T dL/dy_i
                   +  sum_{j < t} f_j u_j . R B_j  +  p_L S . R

What a state costs a token does not go with the length of chunks, what tokens of a chunk cost each other does. Rows that
no state enters or leaves and that are short (`is_short`) are one chunk, without states: W and V of all tokens, in parts
of 32 rows, whose decays are products of those within the parts.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .custom_op import manual_backward
from .native import Kernels, Pointer, Struct, fields, must_have_memory
from .parts import empty_parts

KERNELS = Kernels("ssd.c")
HEADS = 16  # of a task at most: they share scores, and the gradients of B and C are summed over a task, then over tasks
TASKS = 4  # of a backward pass at least, where there are heads enough
LONGEST = 512  # tokens whose scores fit the second cache


def is_short(length: int, numbers: int) -> bool:
    """Whether a row of so many tokens takes less time without states of so many numbers a channel, as measured."""
    return length <= min(LONGEST, 3 * numbers + 64)


class _Ssd(Struct):
    """What both kernels read, as `ops/kernels/ssd.c` has it."""

    _fields_ = fields(
        "batch length heads groups width numbers skips block threads x_row x_token B_row B_token C_row C_token",
        "x B C dt A D keep",
    )


class _Gradients(Struct):
    _fields_ = fields("x_row x_token B_row B_token C_row C_token", "y final initial x dt A B C D")


class NativeSsd(torch.autograd.Function):
    """x [B, T, H, P], dt [B, T, H], A [H], B, C [B, T, G, N], D [H], [H, P] or None, keep [B, T] or None, state
    [B, H, P, N] or None, all fp32 on a CPU, to y [B, T, H, P] and the final state [B, H, P, N], None unless `final`.

    x, B and C may be parts of the rows of a wider tensor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        keep: Tensor | None,
        state: Tensor | None,
        final: bool,
    ) -> tuple[Tensor, Tensor | None]:
        kernels = KERNELS.loaded()
        state = None if state is None else state.contiguous()
        y = x.new_empty(x.shape)
        end = x.new_empty(len(x), *x.shape[2:], B.shape[-1]) if final else None
        # no number depends on what heads share a task, as sums of gradients do
        given = _given(max(TASKS, torch.get_num_threads()), x, dt, A, B, C, D, keep)
        ctx.short = state is None and end is None and is_short(x.shape[1], B.shape[-1])
        if ctx.short:
            failed = kernels.ssd_short(ctypes.byref(given), Pointer(y))
        else:
            failed = kernels.ssd(ctypes.byref(given), Pointer(state), Pointer(y), Pointer(end))
        must_have_memory(failed)
        ctx.save_for_backward(x, dt, A, B, C, D, keep, state)
        ctx.set_materialize_grads(False)
        return y, end

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, state = ctx.saved_tensors
        x, dt, A, B, C, D, _ = inputs
        kernels = KERNELS.loaded()
        grad_y = x.new_zeros(x.shape) if grads[0] is None else grads[0].contiguous()
        grad_final = None if grads[1] is None else grads[1].contiguous()
        grad_state = torch.empty_like(state) if ctx.needs_input_grad[7] else None
        grad_x, of_B, of_C = empty_parts(x, B, C)
        grad_dt, grad_A = dt.new_empty(dt.shape), A.new_empty(len(x), len(A))
        blocks = -(-(x.shape[2] // B.shape[2]) // _heads_of_task(x, B, TASKS))
        grad_B, grad_C = of_B, of_C
        if blocks > 1:
            grad_B, grad_C = (B.new_empty(*B.shape[:3], blocks, B.shape[3]) for _ in range(2))
        grad_D = None if D is None else x.new_zeros(len(x), *x.shape[2:])
        given = _given(TASKS, *inputs)
        to_x, to_B, to_C = _strided(grad_x, grad_B, grad_C)
        strides = _strides(grad_x, grad_B, grad_C)
        to = _Gradients(*strides, grad_y, grad_final, grad_state, to_x, grad_dt, grad_A, to_B, to_C, grad_D)
        if ctx.short:
            failed = kernels.ssd_short_backward(ctypes.byref(given), ctypes.byref(to))
        else:
            failed = kernels.ssd_backward(ctypes.byref(given), Pointer(state), ctypes.byref(to))
        must_have_memory(failed)
        if blocks > 1:
            torch.sum(grad_B, 3, out=of_B), torch.sum(grad_C, 3, out=of_C)
        of_D = None if D is None or grad_D is None else grad_D.sum(0 if D.dim() == 2 else (0, 2))
        return grad_x, grad_dt, grad_A.sum(0), of_B, of_C, of_D, None, grad_state, None


def _given(
    tasks: int, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, keep: Tensor | None
) -> _Ssd:
    rows = [each if each[0, 0].is_contiguous() else each.contiguous() for each in (x, B, C)]
    rest = (None if each is None else each.contiguous() for each in (dt, A, D, keep))
    skips = 1 if D is None or D.dim() == 1 else x.shape[3]
    sizes = (*x.shape[:3], B.shape[2], x.shape[3], B.shape[3], skips, _heads_of_task(x, B, tasks))
    return _Ssd(*sizes, torch.get_num_threads(), *_strides(*rows), *_strided(*rows), *rest)


def _strides(*rows: Tensor) -> list[int]:
    """Of rows and of tokens."""
    return [stride for each in rows for stride in each.stride()[:2]]


def _strided(*rows: Tensor) -> list[Pointer]:
    return [Pointer(each, strided=True) for each in rows]


def _heads_of_task(x: Tensor, B: Tensor, tasks: int) -> int:
    """Of about equal tasks, in all as many as that or more where there are heads enough."""
    groups, ratio = B.shape[2], x.shape[2] // B.shape[2]
    of_group = min(ratio, max(-(-ratio // HEADS), -(-tasks // (len(x) * groups))))
    return -(-ratio // of_group)
