"""Attention softmax(c Q K^T) V on a CPU, with products of bf16 or fp32 and all else in fp32.

Forward and backward pass are one call of a C kernel each, in blocks that stay in the cache (Dao et al. 2022, arXiv
2205.14135); of each row the maximum and the sum of its softmax are kept. Products of bf16 are used only where the
processor has them (AMX or AVX512-BF16). torch's own kernels take half as long again to twice as long in fp32, and three
to five times as long in bf16, most of it in the gradient.

Legend: B batch, T queries, S keys, H heads, Hkv heads of keys and values, K and V their widths.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .custom_op import manual_backward
from .native import Kernels, Pointer, Struct, fields, unobserved
from .precision import without_autocast

KERNELS = {
    torch.bfloat16: Kernels("attention_bf16.c"),
    torch.float32: Kernels("attention_fp32.c"),
}
LEAST = {torch.bfloat16: 2, torch.float32: 64}
"""Keys from which it is used: of fewer torch's kernel for fp32 is as fast or faster."""
WITHOUT_TILES = 512
"""Keys up to which AVX512-BF16 alone is used: of more torch's forward pass is twice as fast, its gradient never."""
WIDEST = 1024
"""Of heads, as in `ops/kernels/attention_fp32.c`."""


class _Call(Struct):
    """What the kernels read, as `ops/kernels/attention.h` has it."""

    _fields_ = fields(
        "batch heads groups queries keys width value_width threads room "
        "wide_q wide_k wide_v wide_out wide_grad wide_dk wide_dv "
        "q_batch q_head q_token k_batch k_head k_token v_batch v_head v_token "
        "mask_batch mask_head mask_row grad_batch grad_head grad_token "
        "dq_batch dq_head dq_token dk_batch dk_head dk_token dv_batch dv_head dv_token",
        "q k v mask out rows grad dq dk dv scratch",
    )


def has_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether `attention` can be called for these."""
    if dtype not in KERNELS or any(x.dtype not in (torch.float32, dtype) for x in (query, key, value)):
        return False
    if not (mask is None or mask.dtype == torch.bool) or max(query.shape[-1], value.shape[-1]) > WIDEST:
        return False
    if not unobserved(query, key, value, mask) or key.shape[2] < LEAST[dtype]:
        return False
    return KERNELS[dtype].library is not None and key.shape[2] <= most_keys(dtype)


@lru_cache
def most_keys(dtype: torch.dtype) -> int:
    """Up to how many keys the kernel is used: 0 where processor, compiler or system have no products of that dtype."""
    library = KERNELS[dtype].library
    known = 0 if library is None else library.attention_products()
    return (0, WITHOUT_TILES if dtype == torch.bfloat16 else sys.maxsize, sys.maxsize)[known]


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dtype: torch.dtype
) -> Tensor:
    """softmax(scale Q K^T) V, where `has_attention`.

    Args:
        query: [B, H, T, K]. key: [B, Hkv, S, K]. value: [B, Hkv, S, V]. fp32 each, or `dtype`.
        mask: [B or 1, H or 1, T, S] bool, true where a query sees a key; None for the keys up to its own place. A query
            that sees none has the output 0.
        dtype: bf16 or fp32, to which queries, keys, values and probabilities are rounded for the products.

    Returns:
        [B, T, H, V] of `dtype`.
    """
    return _Attention.apply(query, key, value, mask, scale, dtype)


class _Attention(torch.autograd.Function):
    """Saves its inputs, the output, and two numbers of each row: the maximum of its scores and 1 / sum. With P the
    probabilities and D = sum_v O dO,

        dV = P^T dO    dS = P (dO V^T - D)    dQ = c dS K    dK = c dS^T Q

    Gradients have the dtypes of the inputs, rounded once.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dtype: torch.dtype
    ) -> Tensor:
        batch, heads, length, _ = query.shape
        out = query.new_empty(batch, length, heads, value.shape[-1], dtype=dtype)
        rows = query.new_empty(batch, heads, 2, length, dtype=torch.float32)
        _call("attention", query, key, value, mask, out, rows, scale)
        ctx.save_for_backward(query, key, value, mask, out, rows)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: under checkpoints a second look is an error
        if torch.is_grad_enabled():  # create_graph=True
            return _again(ctx, grad, *saved[:5])
        return _Attention.by_hand(ctx, grad, *saved)

    @staticmethod
    @manual_backward
    def by_hand(ctx: Any, grad: Tensor, *saved: Any) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out, rows = saved
        groups = query.shape[1] // key.shape[1]
        grads = [torch.empty_like(query)]
        for x in (key, value):
            shape = (x.shape[0], query.shape[1], *x.shape[2:])
            grads.append(torch.empty_like(x) if groups == 1 else x.new_empty(shape, dtype=torch.float32))
        _call("attention_backward", query, key, value, mask, out, rows, ctx.scale, grad, *grads)
        if groups > 1:
            grads[1:] = (
                whole.unflatten(1, (-1, groups)).sum(2).to(x.dtype)
                for x, whole in zip((key, value), grads[1:], strict=True)
            )
        return *grads, None, None, None


def _again(
    ctx: Any, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor
) -> tuple[Any, ...]:
    """The gradient by autograd, which has one of its own."""
    wanted = [x for x, wants in zip((query, key, value), ctx.needs_input_grad, strict=False) if wants]
    with without_autocast(query):
        again = _plain(query, key, value, mask, ctx.scale, out.dtype)
        found = iter(torch.autograd.grad(again, wanted, grad, create_graph=True))
    return *(next(found) if wants else None for wants in ctx.needs_input_grad[:3]), None, None, None


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    """The formula in operations of torch, in fp32, for a derivative of the gradient."""
    groups = query.shape[1] // key.shape[1]
    query, key, value = (x.to(dtype).float() for x in (query, key, value))
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = scale * query @ key.mT
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), -1).masked_fill(~mask, 0)
    return (weights @ value).transpose(1, 2).to(dtype)


def _with_rows(x: Tensor) -> Tensor:
    """x with rows without gaps."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor | None, *axes: int) -> list[int]:
    """0 along an axis of one number, which stands for all."""
    return [0 if x is None or x.shape[axis] == 1 else x.stride(axis) for axis in axes]


def _call(
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    rows: Tensor,
    scale: float,
    grad: Tensor | None = None,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
) -> None:
    """The kernel `name`, which writes `out` and `rows`, or the last three."""
    query, key, value = (_with_rows(x) for x in (query, key, value))
    mask, grad = (None if x is None else _with_rows(x) for x in (mask, grad))
    batch, heads, length, width = query.shape
    threads = max(1, min(torch.get_num_threads(), batch * heads))
    call = _Call(
        *(batch, heads, heads // key.shape[1], length, key.shape[2], width, value.shape[-1], threads, 0),
        *(x is not None and x.dtype == torch.float32 for x in (query, key, value, out, grad, dk, dv)),
        *(stride for x in (query, key, value, mask) for stride in _strides(x, 0, 1, 2)),
        *_strides(grad, 0, 2, 1),
        *(stride for x in (dq, dk, dv) for stride in _strides(x, 0, 1, 2)),
        *(Pointer(x, strided=True) for x in (query, key, value, mask, out, rows, grad, dq, dk, dv)),
    )
    kernels = KERNELS[out.dtype].loaded()
    kernels.attention_room(ctypes.byref(call), ctypes.c_int64(grad is not None))
    scratch = torch.empty(threads, call.room, dtype=torch.uint8)
    call.scratch = scratch.data_ptr() if call.room else None
    getattr(kernels, name)(ctypes.byref(call), ctypes.c_float(scale))
