"""Rows that are made of parts, as the outputs of one projection for several uses, without copies in training on a CPU.

A view of a part is not contiguous: whoever reads it whole copies it first, and autograd copies the gradients of all
parts into one tensor. `linear_parts` makes every part a tensor of its own by a product with its rows of the weight;
backwards, products read the gradients where they lie, into the rows of the weight's gradient, and add up those of x.
`split_parts` cuts rows that one operator made whole, and takes their gradients as they are where whoever computed them
put them side by side (`empty_parts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .custom_op import manual_backward
from .native import unobserved


def linear_parts(x: Tensor, weight: Tensor, bias: Tensor | None, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """`F.linear(x, weight, bias).split(widths, -1)`.

    Args:
        x: [..., I]. weight: [O, I]. bias: [O] or None.
        widths: of the parts; their sum is O.

    Returns:
        For each width a tensor [..., width].
    """
    given = (x, weight, bias)
    wanted = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in given)
    alike = all(each is None or each.dtype == x.dtype for each in given) and not torch.is_autocast_enabled("cpu")
    if wanted and alike and unobserved(*given):
        return _LinearParts.apply(x, weight, bias, tuple(widths))
    return F.linear(x, weight, bias).split(list(widths), -1)


class _LinearParts(torch.autograd.Function):
    """y_p = x W_p^T + b_p:  dL/dx = sum_p dL/dy_p W_p,  dL/dW_p = dL/dy_p^T x,  dL/db_p = sum over rows of dL/dy_p."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, widths: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        ctx.slices = [slice(*ends) for ends in pairwise(accumulate(widths, initial=0))]
        return tuple(F.linear(x, weight[part], None if bias is None else bias[part]) for part in ctx.slices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            x, weight = ctx.saved_tensors
            sizes = [part.stop - part.start for part in ctx.slices]
            shapes = [(*x.shape[:-1], size) for size in sizes]
            whole = [x.new_zeros(shape) if grad is None else grad for grad, shape in zip(grads, shapes, strict=True)]
            grad = torch.cat(whole, -1)
            rows = grad.flatten(0, -2)
            return grad @ weight, rows.mT @ x.flatten(0, -2), rows.sum(0) if ctx.needs_input_grad[2] else None, None
        return _LinearParts.by_hand(ctx, *grads)

    @staticmethod
    @manual_backward
    def by_hand(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        grad_x = None
        grad_weight = weight.new_empty(weight.shape) if of_weight else None
        grad_bias = weight.new_empty(len(weight)) if of_bias else None
        for part, grad in zip(ctx.slices, grads, strict=True):
            if grad is None or grad.numel() == 0:
                for each in (grad_weight, grad_bias):
                    if each is not None:
                        each[part].zero_()
                continue
            grad = grad.reshape(-1, grad.shape[-1])
            if grad_weight is not None:
                torch.mm(grad.t(), rows, out=grad_weight[part])
            if grad_bias is not None:
                torch.sum(grad, 0, out=grad_bias[part])
            if of_x:
                grad_x = torch.mm(grad, weight[part]) if grad_x is None else grad_x.addmm_(grad, weight[part])
        if of_x:
            grad_x = x.new_zeros(x.shape) if grad_x is None else grad_x.view(x.shape)
        return grad_x, grad_weight, grad_bias, None


def split_parts(x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """`x.split(widths, -1)`, whose gradient is made without a copy of those that lie side by side."""
    wanted = torch.is_grad_enabled() and x.requires_grad
    return _SplitParts.apply(x, tuple(widths)) if wanted and unobserved(x) else x.split(list(widths), -1)


class _SplitParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
        return x.split(list(widths), -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if not torch.is_grad_enabled() and side_by_side(*grads):
            shape = (*grads[0].shape[:-1], grads[0].stride(-2))
            return grads[0].as_strided(shape, grads[0].stride()), None
        return torch.cat(grads, -1), None


def side_by_side(*parts: Tensor) -> bool:
    """Whether these parts [B, T, width], or [B, T, heads, width of one], are all of the rows of one contiguous tensor,
    in this order."""
    first = parts[0]
    sizes = [part.shape[2:].numel() for part in parts]
    step = sum(sizes)
    place = first.storage_offset()
    for part, size in zip(parts, sizes, strict=True):
        inner = part.shape[-1]
        rows = (part.shape[1] * step, step, inner, 1) if part.dim() == 4 else (part.shape[1] * step, step, 1)
        if part.stride() != rows or part.storage_offset() != place or part.dtype != first.dtype:
            return False
        if part.untyped_storage() is not first.untyped_storage():  # one object for a memory, also where it is none
            return False
        place += size
    return True


def empty_parts(*parts: Tensor) -> list[Tensor]:
    """Tensors of these shapes [B, T, heads, width], contiguous or, where these are side by side, so as well."""
    if not side_by_side(*parts):
        return [part.new_empty(part.shape) for part in parts]
    sizes = [part.shape[2:].numel() for part in parts]
    whole = parts[0].new_empty(*parts[0].shape[:2], sum(sizes))
    return [rows.view(part.shape) for rows, part in zip(whole.split(sizes, -1), parts, strict=True)]
