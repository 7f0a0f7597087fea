"""A product with a SiLU gate, `x silu(gate)`: of SwiGLU (Shazeer 2020) and of the output gates of recurrences.

On a CPU forward and backward pass are one walk in C each and nothing but the two factors is kept, where autograd keeps
silu(gate) too and takes five passes over memory; bf16 is rounded once, after the product. Elsewhere, and for other
dtypes than fp32 and bf16, it is plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .backend import needs_gradients
from .custom_op import manual_backward
from .pointwise import KERNELS, pointwise

_NAMES = {torch.float32: "silu_gate", torch.bfloat16: "silu_gate_bf16"}


def silu_gated(x: Tensor, gate: Tensor) -> Tensor:
    """`x * silu(gate)`.

    Args:
        x, gate: floating tensors of one shape.

    Returns:
        The product, in the dtype that torch's product has.
    """
    fits = x.shape == gate.shape and x.dtype == gate.dtype and x.dtype in _NAMES
    if torch.compiler.is_compiling() or not fits or (kernels := KERNELS.for_tensors(x, gate)) is None:
        return x * F.silu(gate)
    return _Gate.apply(x, gate) if needs_gradients(x, gate) else pointwise(kernels, _NAMES[x.dtype], x, gate)[0]


class _Gate(torch.autograd.Function):
    """dL/dx = silu(gate) dL/dy, dL/dgate = silu'(gate) x dL/dy. Saves its inputs alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate)
        return pointwise(KERNELS.for_tensors(x, gate), _NAMES[x.dtype], x, gate)[0]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            x, gate = ctx.saved_tensors
            sigmoid = gate.sigmoid()
            return grad_y * F.silu(gate), grad_y * x * sigmoid * (1 + gate * (1 - sigmoid))
        return _Gate.by_hand(ctx, grad_y)

    @staticmethod
    @manual_backward
    def by_hand(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        x, gate = ctx.saved_tensors
        kernels = KERNELS.for_tensors(x, gate, grad_y)
        if kernels is None or grad_y.dtype != x.dtype:
            return grad_y * F.silu(gate), torch.ops.aten.silu_backward(grad_y * x, gate)
        grad_x, grad_gate = pointwise(kernels, f"{_NAMES[x.dtype]}_backward", x, gate, grad_y, outputs=2)
        return grad_x, grad_gate
