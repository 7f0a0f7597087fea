"""A linear layer whose output is cut in parts, each stored by itself.

    y_i = x W_i^T   for the rows W_i of W;   dL/dx = sum_i dL/dy_i W_i,   dL/dW_i = (dL/dy_i)^T x

Cut from one product, the parts are views with gaps: whatever needs their rows without gaps copies them, forward and
backward, and their gradients are put side by side by a further copy. Here there is none, for a few percent more time of
the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .compat import watched
from .custom_op import manual_backward


def worth_parting(x: Tensor, weight: Tensor) -> bool:
    """Whether these are several rows of fp32 on a CPU, and nobody records, transforms or casts the operations: a GPU
    reads rows with gaps as fast."""
    return (
        not watched()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )


def linear_parts(x: Tensor, weight: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """`F.linear(x, weight).split(sizes, -1)`, each part contiguous. Differentiable once.

    Args:
        x: [..., I]. weight: [O, I].
        sizes: of the parts, whose sum is O.

    Returns:
        [..., size] for each of the sizes.
    """
    return _LinearParts.apply(x, weight, tuple(sizes))


class _LinearParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes
        return tuple(F.linear(x, part) for part in weight.split(sizes))

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        parts = [grad.reshape(len(rows), grad.shape[-1]) for grad in grads]
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            first, *others = zip(parts, weight.split(ctx.sizes), strict=True)
            grad_x = torch.mm(*first)
            for grad, part in others:
                grad_x.addmm_(grad, part)
            grad_x = grad_x.view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)
            for grad, part in zip(parts, grad_weight.split(ctx.sizes), strict=True):
                torch.mm(grad.t(), rows, out=part)
        return grad_x, grad_weight, None
