"""What RWKV7 does number by number around its recurrence (Peng et al. 2025, arXiv 2503.14456).

On a CPU each of these is one walk in C forwards and one backwards, where autograd takes a
pass over memory for each product and sum. Elsewhere, and for other dtypes than fp32, it is plain torch.

Legend: B batch, T time, H heads, N features of a head.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from .compat import is_hooked
from .custom_op import manual_backward
from .native import Kernels, Pointer, Struct, contiguous, fields, threads_for
from .norm import l2_norm

KERNELS = Kernels("rwkv7.c")
ROWS = 32  # whose gradients of weights a kernel sums, as in ops/kernels/rwkv7.c


def sigmoid_lerp(x: Tensor, other: Tensor, z: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x + (other - x) * sigmoid(z + bias)` of tensors [..., D], and a bias [D] or None."""
    if _native(x, other, z, bias) and x.numel() and x.shape == other.shape == z.shape:
        rows = [each.reshape(1, -1, 1, each.shape[-1]) for each in (x, other, z)]
        return _SigmoidLerp.apply(*rows, None if bias is None else bias.unsqueeze(0)).view(x.shape)
    return torch.lerp(x, other, _biased(z, bias).sigmoid())


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


def removal_gates(
    key: Tensor,
    decay: Tensor,
    rate: Tensor,
    removal_scale: Tensor,
    rate_scale: Tensor,
    min_log_decay: float,
    eps: float,
    decay_bias: Tensor | None = None,
    rate_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the recurrence takes of projections: with a_t = sigmoid(rate) and z = unit(key * removal_scale),

        log decay = min_log_decay sigmoid(decay)    key (1 + (a - 1) rate_scale)    -z    z a

    Args:
        key, rate: [B, T, H, N], floating. decay: the same, in the dtype of the state.
        removal_scale, rate_scale: [H, N].
        eps: added to the square of a key's length.
        decay_bias, rate_bias: [H, N], added to `decay` and `rate` first, or None.

    Returns:
        The four, [B, T, H, N] each.
    """
    weights = removal_scale, rate_scale, decay_bias, rate_bias
    shapes = (None if each is None else each.shape for each in weights)
    fits = key.shape == decay.shape == rate.shape and all(shape in (None, key.shape[2:]) for shape in shapes)
    if fits and _native(key, decay, rate, *weights):
        return _Gates.apply(key, decay, rate, *weights, min_log_decay, eps)
    decay, rate = _biased(decay, decay_bias), _biased(rate, rate_bias)
    a, removal = rate.sigmoid(), l2_norm(key * removal_scale, eps)
    return min_log_decay * decay.sigmoid(), key * (1.0 + (a - 1.0) * rate_scale), -removal, removal * a


def gated_output(
    out: Tensor, receptance: Tensor, key: Tensor, value: Tensor, gate: Tensor, bonus: Tensor, norm: nn.Module
) -> Tensor:
    """`(norm(out) + (sum over N of receptance * key * bonus) * value) * gate`.

    Args:
        out, receptance, key, value: [B, T, H, N], floating.
        gate: [B, T, H N].
        bonus: [H, N].
        norm: [..., H, N] to [..., H N]; an `nn.GroupNorm` is taken for a LayerNorm of each head by itself.

    Returns:
        [B, T, H N].
    """
    if isinstance(norm, nn.GroupNorm) and not is_hooked(norm) and bonus.shape == out.shape[2:]:
        given = out, receptance, key, value, gate.view_as(out), norm.weight, norm.bias, bonus
        if all(x.shape == out.shape for x in given[:5]) and _native(*given):
            return _Output.apply(*given, norm.eps).flatten(2)
    present = (receptance * key * bonus).sum(-1, keepdim=True) * value
    return (norm(out) + present.flatten(2)) * gate


def takes_biases(x: Tensor) -> bool:
    """Whether a map of x would be worked on by the kernels here, which add its bias for nothing."""
    return not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled() and _native(x)


def _native(*tensors: Tensor | None) -> bool:
    given = [x for x in tensors if x is not None]
    fp32 = all(x.dtype == torch.float32 for x in given)
    return fp32 and not torch.compiler.is_compiling() and KERNELS.for_tensors(*given) is not None


class _LerpSizes(Struct):
    _fields_ = fields("rows heads size threads", "x other z bias")


class _LerpGradients(Struct):
    _fields_ = fields("", "of_y x other z bias")


class _SigmoidLerp(torch.autograd.Function):
    """With s = sigmoid(z + b): dL/dx = (1 - s) dL/dy, dL/dother = s dL/dy, dL/dz = s (1 - s) (other - x) dL/dy, and
    dL/db is its sum. Tensors [1, rows, 1, D], b [1, D] or None."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor | None) -> Tensor:
        ctx.save_for_backward(*given)
        y = given[0].new_empty(given[0].shape)  # type: ignore[union-attr]
        KERNELS.loaded().rwkv7_lerp(_arguments(_LerpSizes, given), Pointer(y))
        return y

    @staticmethod
    @manual_backward
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        found = _room_for_gradients(tensors, weights=1)
        to = _LerpGradients(*contiguous(grad_y), *found)
        KERNELS.loaded().rwkv7_lerp_backward(_arguments(_LerpSizes, tensors), ctypes.byref(to))
        return (*found[:3], *_summed(found[3:]))


class _Sizes(Struct):
    _fields_ = fields("rows heads size threads", "key decay rate removal_scale rate_scale decay_bias rate_bias")


class _GatesGradients(Struct):
    _fields_ = fields("", "of_log_decay of_key of_a of_b key decay rate removal_scale rate_scale decay_bias rate_bias")


class _Gates(torch.autograd.Function):
    """With k the key, u = k xi (`removal_scale`), n = r u its unit vector, s = a (1 - a) and alpha the `rate_scale`,

        dL/dn = a dL/db - dL/da'    dL/du = r (dL/dn - n sum(n dL/dn))    dL/drate = s (n dL/db + k alpha dL/dk')
        dL/dk = (1 + (a - 1) alpha) dL/dk' + xi dL/du    dL/dxi = sum of k dL/du    dL/dalpha = sum of k (a - 1) dL/dk'

    where k', a' = -n and b = n a are the results; a bias has the sum of dL/drate or dL/ddecay. Saves its inputs alone.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        *tensors, min_log_decay, eps = given
        ctx.save_for_backward(*tensors)
        ctx.options = ctypes.c_float(eps), ctypes.c_float(min_log_decay)
        results = tuple(tensors[0].new_empty(tensors[0].shape) for _ in range(4))
        KERNELS.loaded().rwkv7_gates(_arguments(_Sizes, tensors), *ctx.options, *map(Pointer, results))
        return results

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        found = _room_for_gradients(tensors, weights=4)
        to = _GatesGradients(*contiguous(*grads), *found)
        KERNELS.loaded().rwkv7_gates_backward(_arguments(_Sizes, tensors), ctypes.byref(to), *ctx.options)
        return *found[:3], *_summed(found[3:]), None, None


class _OutputSizes(Struct):
    _fields_ = fields("rows heads size threads", "out receptance key value gate weight bias bonus")


class _OutputGradients(Struct):
    _fields_ = fields("", "of_y out receptance key value gate weight bias bonus")


class _Output(torch.autograd.Function):
    """With n the normed output, p = sum(r k rho) and G = gate dL/dy,

        dL/dgate = (n w + b + p v) dL/dy    dL/dw = sum of G n    dL/db = sum of G    dL/dv = p G    dL/dp = sum(v G)
        dL/dout = (w G - mean(w G) - n mean(n w G)) / sqrt(var + eps)    dL/dr = k rho dL/dp    dL/dk = r rho dL/dp

    and dL/drho = sum of r k dL/dp. Saves its inputs alone.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *tensors, eps = given
        ctx.save_for_backward(*tensors)
        ctx.eps = ctypes.c_float(eps)
        y = tensors[0].new_empty(tensors[0].shape)
        KERNELS.loaded().rwkv7_output(_arguments(_OutputSizes, tensors), ctx.eps, Pointer(y))
        return y

    @staticmethod
    @manual_backward
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        found = _room_for_gradients(tensors, weights=3)
        to = _OutputGradients(*contiguous(grad_y), *found)
        KERNELS.loaded().rwkv7_output_backward(_arguments(_OutputSizes, tensors), ctypes.byref(to), ctx.eps)
        weight, bias, bonus = _summed(found[5:])
        return *found[:5], weight.flatten(), bias.flatten(), bonus, None  # type: ignore[union-attr]


def _arguments(kind: type[Struct], tensors: Any) -> Any:
    first = tensors[0]
    rows = first.shape[0] * first.shape[1]
    return ctypes.byref(kind(rows, *first.shape[2:], threads_for(first), *contiguous(*tensors)))


def _room_for_gradients(tensors: Any, weights: int) -> list[Tensor | None]:
    """Of the shape of each; of the last `weights` a sum for each task of ROWS rows, or None for None."""
    first = tensors[0]
    tasks, rows = -(-first.shape[0] * first.shape[1] // ROWS), len(tensors) - weights
    sums = [None if x is None else first.new_zeros(tasks, *first.shape[2:]) for x in tensors[rows:]]
    return [*(x.new_empty(x.shape) for x in tensors[:rows]), *sums]


def _summed(parts: list[Tensor | None]) -> list[Tensor | None]:
    return [None if x is None else x.sum(0) for x in parts]
