"""Softmax over time, one token after another: running sums of exponentials, and what a state of averages forgets.

With L_t = logsumexp_{i <= t} s_i, an average over time with the weights softmax(s) is a state with the forget gates
L_{t-1} - L_t and the write weights exp(s_t - L_t), both exponents <= 0 (ABC, arXiv:2110.02488; LightNet,
arXiv:2405.21022). On a CPU forward and backward pass are one walk in C each; elsewhere, and for other dtypes than fp32,
torch goes from token to token.

Legend: B batch, T time, H heads, M channels of the softmax.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .custom_op import as_custom_op, manual_backward
from .native import Kernels, Pointer, Struct, contiguous, fields, threads_for

KERNELS = Kernels("logsumexp.c")

# The logsumexp of nothing: finite, so that differences of two of them are 0 rather than NaN.
EMPTY = -1e30
# For a kernel that cumulates log decays: e^-50 of a state is nothing in fp32, while -1e30 swallows its neighbours.
KERNEL_MIN_GATE = -50.0


def time_softmax(s: Tensor, before: Tensor | None, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and log decays of a running softmax average.

    Args:
        s: [B, T, H, M], logits; EMPTY takes the place of what is below it.
        before: [B, H, M], L_0, or None for that of nothing.
        keep: [B, T], 0 where a document starts, or None.

    Returns:
        exp(s_t - L_t) and L_{t-1} - L_t, both [B, T, H, M], and the last L [B, H, M].
    """
    given = [x for x in (s, before, keep) if x is not None]
    if all(x.dtype == torch.float32 for x in given) and KERNELS.for_tensors(*given) is not None:
        return _NativeTimeSoftmax.apply(s, before, keep)
    s = s.clamp(min=EMPTY)
    before = torch.full_like(s[:, 0], EMPTY) if before is None else before
    start = None if keep is None else (keep == 0)[:, :, None, None]
    sums = _running_logsumexp(s, before, start)
    return (s - sums).exp(), previous(sums, before, start) - sums, sums[:, -1]


class _RunningLogSumExp(torch.autograd.Function):
    """L_t = log(exp L_{t-1} + exp s_t), from `before` = L_0; starts anew where `start` is true.

    s [B, T, H, M], before [B, H, M], start [B, T, 1, 1] or None; returns [B, T, H, M]. With R_t the gradient of L_t
    through all later ones,

        dL_t/dL_{t-1} = exp(L_{t-1} - L_t)        R_t = dL/dL_t + exp(L_t - L_{t+1}) R_{t+1}
        dL/ds_t = exp(s_t - L_t) R_t              dL/dL_0 = exp(L_0 - L_1) R_1
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, before: Tensor, start: Tensor | None) -> Tensor:
        totals = [before]
        starts = [None] * s.shape[1] if start is None else start.unbind(1)
        for s_t, start_t in zip(s.unbind(1), starts, strict=True):
            past = totals[-1] if start_t is None else totals[-1].masked_fill(start_t, EMPTY)
            totals.append(torch.logaddexp(past, s_t))
        sums = torch.stack(totals[1:], 1)
        ctx.save_for_backward(s, before, start, sums)
        return sums

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        s, before, start, sums = ctx.saved_tensors
        carry = (previous(sums, before, start) - sums).exp()
        if start is not None:
            carry = carry.masked_fill(start, 0.0)  # which is 1 where a document starts with a token without weight
        # R_t = dL/dL_t + exp(L_t - L_{t+1}) R_{t+1}, from the last token down
        reach = grads[0].clone()
        later = zip(reach.unbind(1)[-2::-1], reach.unbind(1)[:0:-1], carry.unbind(1)[:0:-1], strict=True)
        for reach_t, reach_next, carry_next in later:
            reach_t.addcmul_(carry_next, reach_next)
        # dL/ds_t = exp(s_t - L_t) R_t, dL/dL_0 = exp(L_0 - L_1) R_1
        return (s - sums).exp() * reach, carry[:, 0] * reach[:, 0], None


def previous(sums: Tensor, before: Tensor, start: Tensor | None) -> Tensor:
    """L_{t-1} for every t, that of nothing where a document starts."""
    previous = torch.cat([before.unsqueeze(1), sums[:, :-1]], 1)
    return previous if start is None else previous.masked_fill(start, EMPTY)


_running_logsumexp = as_custom_op(_RunningLogSumExp, ("s",))


class _Softmax(Struct):
    """What both kernels read, as `ops/kernels/logsumexp.c` has it."""

    _fields_ = fields("batch length width threads", "s before keep")


class _Gradients(Struct):
    _fields_ = fields("", "weights gates of_weights of_gates of_last s before")


class _NativeTimeSoftmax(torch.autograd.Function):
    """`time_softmax` of fp32 tensors on a CPU. With W = exp(s - L) and F_t = L_{t-1} - L_t, and R_t the gradient of L_t
    through all later ones,

        R_t = dL/dF_{t+1} + exp(F_{t+1}) R_{t+1} - W_t dL/dW_t - dL/dF_t        dL/ds_t = W_t (dL/dW_t + R_t)

    where the first two terms end with a document, and are dL/dL_T at the last step; dL/dL_0 = dL/dF_1 + exp(F_1) R_1.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, before: Tensor | None, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        weights, gates, last = s.new_empty(s.shape), s.new_empty(s.shape), s.new_empty(s[:, 0].shape)
        given = _softmax(s, before, keep)
        KERNELS.loaded().time_softmax(ctypes.byref(given), Pointer(weights), Pointer(gates), Pointer(last))
        ctx.save_for_backward(s, keep, weights, gates)
        ctx.goes_on = before is not None
        return weights, gates, last

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        s, keep, weights, gates = ctx.saved_tensors
        grad_s, grad_before = s.new_empty(s.shape), s.new_empty(s[:, 0].shape)
        to = _Gradients(weights, gates, *contiguous(*grads), grad_s, grad_before)
        KERNELS.loaded().time_softmax_backward(ctypes.byref(_softmax(s, None, keep)), ctypes.byref(to))
        return grad_s, grad_before if ctx.goes_on else None, None


def _softmax(s: Tensor, before: Tensor | None, keep: Tensor | None) -> _Softmax:
    return _Softmax(*s.shape[:2], s.shape[2:].numel(), threads_for(s), *contiguous(s, before, keep))
