"""relu(x)^2, the squared ReLU (So et al. 2021); dL/dx = 2 relu(x) dL/dy; and a feed-forward with it.

On a CPU forward and backward pass are one walk in C each (`ops/pointwise.py`), which keeps x alone. Elsewhere, and for
other dtypes than fp32, relu(x) is kept. Between two products that are known it works in place, forwards and backwards.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .compat import transformed
from .custom_op import manual_backward
from .native import Pointer, threads_for
from .pointwise import KERNELS, pointwise


def squared_relu(x: Tensor) -> Tensor:
    """`F.relu(x) ** 2` of a floating tensor, in its dtype."""
    if transformed():
        return F.relu(x).square()
    if torch.compiler.is_compiling() or x.dtype != torch.float32 or KERNELS.for_tensors(x) is None:
        return _SquaredReLU.apply(x)
    return _NativeSquaredReLU.apply(x)


def squared_relu_between(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`F.linear(squared_relu(F.linear(x, up)), down)`.

    Args:
        x: [..., I], floating. up: [W, I]. down: [O, W].

    Returns:
        [..., O].
    """
    given = (x, up, down)
    wanted = torch.is_grad_enabled() and any(each.requires_grad for each in given) and not torch.compiler.is_compiling()
    fp32 = all(each.dtype == torch.float32 for each in given) and not torch.is_autocast_enabled("cpu")
    if wanted and fp32 and not transformed() and KERNELS.for_tensors(*given) is not None:
        return _Between.apply(*given)
    return F.linear(squared_relu(F.linear(x, up)), down)


class _Between(torch.autograd.Function):
    """With y = relu(x U^T)^2 and G = dL/dout D, dL/d(x U^T) = 2 sqrt(y) G. Saves its inputs and y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        y = F.linear(x.reshape(-1, x.shape[-1]), up)
        _within("squared_relu_within", y)
        ctx.save_for_backward(x, up, down, y)
        return F.linear(y, down).view(*x.shape[:-1], len(down))

    @staticmethod
    @manual_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, y = ctx.saved_tensors
        of_x, of_up, of_down = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        grad_down = grad.t() @ y if of_down else None
        grad = grad @ down
        _within("squared_relu_within_backward", y, grad)
        grad_up = grad.t() @ x.reshape(-1, x.shape[-1]) if of_up else None
        return (grad @ up).view(x.shape) if of_x else None, grad_up, grad_down


def _within(name: str, *tensors: Tensor) -> None:
    """A kernel that writes into the last of these contiguous tensors."""
    sizes = ctypes.c_int64(tensors[0].numel()), ctypes.c_int64(threads_for(tensors[0]))
    getattr(KERNELS.loaded(), name)(*sizes, *map(Pointer, tensors))


class _NativeSquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return pointwise(KERNELS.loaded(), "squared_relu", x)[0]

    @staticmethod
    @manual_backward
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return pointwise(KERNELS.loaded(), "squared_relu_backward", *ctx.saved_tensors, grad)[0]


class _SquaredReLU(torch.autograd.Function):
    """The gradient needs neither x nor a mask: a third of what autograd's two steps cost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @manual_backward
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grad * positive).mul_(2)
