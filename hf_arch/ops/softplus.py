"""softplus(x) = log(1 + exp x), of which step sizes and decays are made; dL/dx = sigmoid(x) dL/dy.

On a CPU forward and backward pass are one walk in C each (`ops/pointwise.py`). Elsewhere, and for other dtypes than
fp32, it is torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .custom_op import manual_backward
from .pointwise import KERNELS, pointwise


def softplus(x: Tensor) -> Tensor:
    """`F.softplus(x)` of a floating tensor, in its dtype."""
    if torch.compiler.is_compiling() or x.dtype != torch.float32 or KERNELS.for_tensors(x) is None:
        return F.softplus(x)
    return _Softplus.apply(x)


class _Softplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return pointwise(KERNELS.for_tensors(x), "softplus", x)[0]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # create_graph=True
            return grad_y * ctx.saved_tensors[0].sigmoid()
        return _Softplus.by_hand(ctx, grad_y)

    @staticmethod
    @manual_backward
    def by_hand(ctx: Any, grad_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        kernels = KERNELS.for_tensors(x, grad_y)
        if kernels is None or grad_y.dtype != torch.float32:
            return grad_y * x.sigmoid()
        return pointwise(kernels, "softplus_backward", x, grad_y)[0]
