"""Root-mean-square normalisation (Zhang & Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * w, computed in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class _RMSNorm(torch.autograd.Function):
    """Saves the normalised input and its inverse norm instead of the five intermediates that autograd would keep."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normalised = x * inverse
        ctx.save_for_backward(normalised, inverse, weight)
        return normalised * weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normalised, inverse, weight = ctx.saved_tensors
        grad_weight = (grad * normalised).flatten(0, -2).sum(0)
        grad_x = grad * weight
        mean = (grad_x * normalised).mean(-1, keepdim=True)
        grad_x.addcmul_(normalised, mean, value=-1).mul_(inverse)
        return grad_x, grad_weight, None


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last axis.

    Args:
        x: [..., D], any floating dtype.
        weight: [D] or None.
        eps: added to the mean square.

    Returns:
        [..., D] in x's dtype; the statistics are taken in fp32 (fp64 for fp64 input).
    """
    if weight is None:
        wide = x if x.dtype == torch.float64 else x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    wide, scale = (x, weight) if x.dtype == torch.float64 else (x.float(), weight.float())
    # The CPU's composite kernel takes twice as long as the closed gradient below; other devices have a fused kernel.
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if x.device.type == "cpu" and needs_grad and not torch.compiler.is_compiling():
        return _RMSNorm.apply(wide, scale, eps).to(x.dtype)
    return F.rms_norm(wide, (x.shape[-1],), scale, eps).to(x.dtype)
