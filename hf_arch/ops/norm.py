"""Root-mean-square norms (Zhang & Sennrich 2019), y = x / sqrt(mean(x^2) + eps) * w, plain or gated, and the L2 norm.

Statistics and products are fp32 (fp64 for fp64 input). On a CPU they are computed in C, row by row, with a gradient
written by hand, or that works through cache-sized blocks of rows, several times as fast as autograd's elementwise
passes over the whole. Under torch.func and forward-mode differentiation the plain operations run, and a second
derivative is taken through them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .backend import needs_gradients
from .compat import transformed
from .custom_op import manual_backward
from .native import Kernels, Pointer, Struct, contiguous, fields, threads_for
from .precision import state_dtype

BLOCK_ELEMENTS = 2**18  # of one block of rows: on a CPU it and its gradients stay in the cache
KERNELS = Kernels("norm.c")
ROWS = 32  # whose gradients of the weight a kernel sums, as in ops/kernels/norm.c


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last axis.

    Args:
        x: [..., D], any floating dtype.
        weight: [D], [G, D] for x [..., G, D], or None.
        eps: added to the mean square.

    Returns:
        [..., D] in x's dtype.
    """
    return _norm(x, weight, None, eps, 1.0 / x.shape[-1])


def _plain_rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = x.to(state_dtype(x))
    if weight is None or weight.dim() == 1:
        # One fused kernel on other devices.
        return F.rms_norm(wide, x.shape[-1:], None if weight is None else weight.to(wide.dtype), eps).to(x.dtype)
    return (F.rms_norm(wide, x.shape[-1:], None, eps) * weight).to(x.dtype)


def silu_gated_rms_norm(x: Tensor, weight: Tensor | None, gate: Tensor, eps: float, gate_first: bool = False) -> Tensor:
    """`rms_norm(x) * silu(gate)`, or `rms_norm(x * silu(gate))` where `gate_first`; arguments as in `rms_norm`.

    Args:
        gate: x's shape, any floating dtype.
    """
    return _norm(x, weight, gate, eps, 1.0 / x.shape[-1], gate_first)


def sigmoid_gated_rms_norm(x: Tensor, weight: Tensor | None, gate: Tensor, eps: float) -> Tensor:
    """`rms_norm(x) * sigmoid(gate)`; arguments as in `silu_gated_rms_norm`."""
    return _norm(x, weight, gate, eps, 1.0 / x.shape[-1], of_sigmoid=True)


def _plain_gated(
    x: Tensor, weight: Tensor | None, gate: Tensor, eps: float, gate_first: bool, of_sigmoid: bool
) -> Tensor:
    wide, opening = x.to(state_dtype(x)), _opening(gate.to(state_dtype(gate)), of_sigmoid)
    if gate_first:
        return _plain_rms_norm(wide * opening, weight, eps).to(x.dtype)
    return (_plain_rms_norm(wide, weight, eps) * opening).to(x.dtype)


def l2_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """`x / sqrt(sum(x^2) + eps)` over the last axis (eps is inside the root), in x's dtype."""
    return _norm(x, None, None, eps, 1.0)


def _plain_l2(x: Tensor, eps: float) -> Tensor:
    wide = x.to(state_dtype(x))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + eps)).to(x.dtype)


class _Kind(NamedTuple):
    """What is computed, besides its tensors; see `_Norm`."""

    eps: float
    factor: float
    gate_first: bool = False
    of_sigmoid: bool = False


def _norm(
    x: Tensor,
    weight: Tensor | None,
    gate: Tensor | None,
    eps: float,
    factor: float,
    gate_first: bool = False,
    of_sigmoid: bool = False,
) -> Tensor:
    """By the gradient written by hand where one is needed, on a CPU where nobody else fuses or transforms; without one
    by the kernel, or in plain operations."""
    kind = _Kind(eps, factor, gate_first, of_sigmoid)
    given = [each for each in (x, weight, gate) if each is not None]
    on_cpu = all(each.device.type == "cpu" for each in given)  # products in place take no notice of a weight on meta
    if on_cpu and not torch.compiler.is_compiling():
        if needs_gradients(*given):
            return _plain(x, weight, gate, kind) if transformed() else _Norm.apply(x, weight, gate, *kind)
        y = _by_kernel(x, weight, gate, kind)
        if y is not None:
            return y
    return _plain(x, weight, gate, kind)


class _Norm(torch.autograd.Function):
    """y = n w with n = u r and r = (f sum(u^2) + eps)^-1/2, after or before a product with s = act(gate): u = x and
    y = n w s, or, `gate_first`, u = x s and y = n w; act is SiLU or, `of_sigmoid`, the sigmoid. Saves its inputs alone.

    With G the gradient of n w (dL/dy, or s dL/dy where the gate comes after the norm),

        dL/dw = sum over rows of G n        dL/du = r (w G - f n sum(w G n))
        gate after the norm:   dL/dgate = act'(gate) dL/dy n w      dL/dx = dL/du
        gate first:            dL/dgate = act'(gate) dL/du x        dL/dx = s dL/du
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        gate: Tensor | None,
        eps: float,
        factor: float,
        gate_first: bool,
        of_sigmoid: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, gate)
        ctx.eps, ctx.factor, ctx.gate_first, ctx.of_sigmoid = eps, factor, gate_first, of_sigmoid
        done = _by_kernel(x, weight, gate, ctx)
        if done is not None:
            return done
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dtype = state_dtype(x)
        scale = None if weight is None else weight.to(dtype)
        for x_rows, gate_rows, y_rows in _blocks(weight, x, gate, y):
            block = x_rows.to(dtype)
            opening = None if gate_rows is None else _opening(gate_rows.to(dtype), of_sigmoid)
            if opening is not None and gate_first:
                block = block * opening
            block = block * _inverse(block, factor, eps)
            if scale is not None:
                block.mul_(scale)
            if opening is not None and not gate_first:
                block.mul_(opening)
            y_rows.copy_(block)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_backward(ctx, grad_y)
        return _Norm.by_hand(ctx, grad_y)

    @staticmethod
    @manual_backward
    def by_hand(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gate = ctx.saved_tensors
        dtype = state_dtype(x)
        scale = None if weight is None else weight.to(dtype)
        kernels = _kernels_for(x, scale, gate, grad_y)
        if kernels is not None:
            return _native_gradients(kernels, x, weight, scale, gate, ctx, grad_y)
        grad_x, grad_gate = (None if each is None else x.new_empty(x.shape, dtype=each.dtype) for each in (x, gate))
        grad_scale = None if scale is None else torch.zeros_like(scale)
        for x_rows, gate_rows, grad_rows, grad_x_rows, grad_gate_rows in _blocks(
            weight, x, gate, grad_y, grad_x, grad_gate
        ):
            inputs, grad = x_rows.to(dtype), grad_rows.to(dtype)
            if gate is not None:
                opening, slope = _opening_and_slope(gate_rows.to(dtype), ctx.of_sigmoid)
            block = inputs * opening if ctx.gate_first else inputs
            inverse = _inverse(block, ctx.factor, ctx.eps)
            normalised = block * inverse
            if gate is not None and not ctx.gate_first:
                # dL/dgate = act'(gate) dL/dy n w, G = s dL/dy
                slope.mul_(grad).mul_(normalised)
                grad_gate_rows.copy_(slope if scale is None else slope.mul_(scale))
                grad = opening.mul_(grad)
            # dL/dw = sum G n, dL/du = r (w G - f n sum(w G n))
            along = grad * normalised
            if scale is not None:
                grad_scale += along.sum(0)
                grad, along = grad * scale, along.mul_(scale)
            along = along.sum(-1, keepdim=True).mul_(-ctx.factor)
            grad = normalised.mul_(along).add_(grad).mul_(inverse)
            if ctx.gate_first:
                # dL/dgate = act'(gate) dL/du x, dL/dx = s dL/du
                grad_gate_rows.copy_(slope.mul_(grad).mul_(inputs))
                grad.mul_(opening)
            grad_x_rows.copy_(grad)
        grad_weight = None if weight is None or grad_scale is None else grad_scale.to(weight.dtype)
        return grad_x, grad_weight, grad_gate, None, None, None, None


class _Rows(Struct):
    """What both kernels read, as `ops/kernels/norm.c` has it."""

    _fields_ = fields("rows groups width gate_first of_sigmoid threads", "x weight gate")


def _kernels_for(x: Tensor, scale: Tensor | None, *like_x: Tensor | None) -> Any:
    """The kernels where all of these are fp32, since others are widened a block at a time, in the cache; and of the
    shapes that they read, since what torch repeats or refuses has no meaning in memory."""
    tensors = (x, scale, *like_x)
    if any(each is not None and each.dtype != torch.float32 for each in tensors):
        return None
    if scale is not None and scale.shape != x.shape[-scale.dim() :]:
        return None
    return None if any(each is not None and each.shape != x.shape for each in like_x) else KERNELS.for_tensors(*tensors)


def _by_kernel(x: Tensor, weight: Tensor | None, gate: Tensor | None, kind: Any) -> Tensor | None:
    """The forward pass, where there is a kernel for it."""
    scale = None if weight is None else weight.to(state_dtype(x))
    kernels = _kernels_for(x, scale, gate)
    if kernels is None:
        return None
    y = torch.empty(x.shape, dtype=x.dtype)
    kernels.norm(*_arguments(x, scale, gate, kind), Pointer(y))
    return y


def _arguments(x: Tensor, scale: Tensor | None, gate: Tensor | None, kind: Any) -> tuple[Any, ...]:
    """Those that both kernels begin with."""
    groups = len(scale) if scale is not None and scale.dim() == 2 else 1
    rows = x.numel() // max(1, groups * x.shape[-1])
    flags = int(kind.gate_first), int(kind.of_sigmoid)
    given = _Rows(rows, groups, x.shape[-1], *flags, threads_for(x), *contiguous(x, scale, gate))
    return ctypes.byref(given), ctypes.c_float(kind.factor), ctypes.c_float(kind.eps)


def _native_gradients(
    kernels: Any, x: Tensor, weight: Tensor | None, scale: Tensor | None, gate: Tensor | None, ctx: Any, grad_y: Tensor
) -> tuple[Tensor | None, ...]:
    grad_x, grad_gate = (None if each is None else torch.empty(x.shape, dtype=x.dtype) for each in (x, gate))
    grad_scale = None
    if scale is not None:
        grad_scale = scale.new_zeros(-(-x.numel() // max(1, scale.numel() * ROWS)), *scale.shape)
    results = (Pointer(grad_x), Pointer(grad_gate), Pointer(grad_scale))
    kernels.norm_backward(*_arguments(x, scale, gate, ctx), Pointer(grad_y.contiguous()), *results)
    grad_weight = None if weight is None or grad_scale is None else grad_scale.sum(0).to(weight.dtype)
    return grad_x, grad_weight, grad_gate, None, None, None, None


def _differentiable_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradient through plain operations, which can be differentiated once more."""
    # Aliases: where the gate was computed from x, its path must not count as one of x.
    aliases: list[Any] = [None if each is None else each.view_as(each) for each in ctx.saved_tensors]
    x, weight, gate = aliases
    y = _plain(x, weight, gate, ctx)
    wanted = [each is not None and needed for each, needed in zip(aliases, ctx.needs_input_grad, strict=False)]
    inputs = [each for each, wants in zip(aliases, wanted, strict=True) if wants]
    found = iter(torch.autograd.grad(y, inputs, grad_y, create_graph=True))
    return *(next(found) if wants else None for wants in wanted), None, None, None, None


def _plain(x: Tensor, weight: Tensor | None, gate: Tensor | None, kind: Any) -> Tensor:
    """What `_Norm` computes, in plain operations."""
    if gate is not None:
        return _plain_gated(x, weight, gate, kind.eps, kind.gate_first, kind.of_sigmoid)
    return _plain_l2(x, kind.eps) if kind.factor == 1.0 and weight is None else _plain_rms_norm(x, weight, kind.eps)


def _opening(gate: Tensor, of_sigmoid: bool) -> Tensor:
    return gate.sigmoid() if of_sigmoid else F.silu(gate)


def _opening_and_slope(x: Tensor, of_sigmoid: bool) -> tuple[Tensor, Tensor]:
    """silu(x) = x s and its derivative s + x s (1 - s), s = sigmoid(x), for the price of one exponential; or s and
    s (1 - s)."""
    sigmoid = x.sigmoid()
    if of_sigmoid:
        return sigmoid, torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1)
    silu = x * sigmoid
    return silu, torch.addcmul(sigmoid, silu, sigmoid, value=-1).add_(silu)


def _inverse(x: Tensor, factor: float, eps: float) -> Tensor:
    """1 / sqrt(factor sum(x^2) + eps) over the last axis."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(factor).add_(eps).rsqrt_()


def _blocks(weight: Tensor | None, x: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Views [rows, D] ([rows, G, D] for a weight of that shape) of the same rows of each tensor."""
    row = x.shape[-1 if weight is None else -weight.dim() :]
    flat = [None if each is None else each.reshape(-1, *row) for each in (x, *others)]
    step = max(1, BLOCK_ELEMENTS // max(1, row.numel()))
    for start in range(0, x.numel() // max(1, row.numel()), step):
        yield tuple(None if each is None else each[start : start + step] for each in flat)
