"""Depthwise causal convolution over time, and the shift by one token: the short memories of linear-recurrence models.

`y_t = act(bias + sum_j weight[:, W-1-j] * x_{t-j})` for lags j = 0..W-1, per channel. Inputs are [B,T,C], C contiguous:
W shifted multiply-adds over cache-sized blocks of rows are 3-4 times as fast as `F.conv1d(groups=C)` on a CPU. Sums are
in fp32.

A change of `segment_ids` hides everything before it. The state is what a later call needs: the last W-1 raw inputs
[B,C,W-1], or the last input [B,D] for `token_shift`, zeros where there were fewer. Every output depends on earlier
positions only, bit for bit.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .custom_op import as_custom_op, manual_backward
from .documents import document_keep
from .native import Kernels, Pointer, Struct, contiguous, fields, must_have_memory
from .precision import state_dtype

KERNELS = Kernels("causal_conv.c")
ACTIVATIONS = (None, "silu")
# Elements of one block of rows: its inputs, sums and gradients (fp32) share the second-level cache.
_BLOCK_ELEMENTS = 1 << 18


def _lag_masks(segment_ids: Tensor, width: int, history: int) -> Tensor:
    """For each lag 0..width-1 (W in all) a mask, [W,B,history+T,1]: true where the input that far back is of the same
    document.

    The `history` tokens in front of the row belong to its first document.
    """
    keep = F.pad(document_keep(segment_ids, torch.bool), (history, 0), value=True).unsqueeze(-1)
    masks = [torch.ones_like(keep)]
    for lag in range(1, width):
        masks.append(masks[-1] & F.pad(keep, (0, 0, lag - 1, 0), value=True)[:, : keep.shape[1]])
    return torch.stack(masks)


def _blocks(x: Tensor) -> list[slice]:
    """Slices of batch rows that fit the cache on a CPU, one slice elsewhere."""
    batch = x.shape[0]
    rows = max(1, _BLOCK_ELEMENTS // max(1, x[0].numel())) if x.device.type == "cpu" and batch else max(1, batch)
    return [slice(start, start + rows) for start in range(0, batch, rows)]


def _shifted_sum(x: Tensor, taps: Tensor, bias: Tensor | None, masks: Tensor | None) -> Tensor:
    """The sum before the activation of rows x [b,T,C] with taps [W,C], lag j at taps[j], in place over one buffer."""
    total = x * taps[0]
    if bias is not None:
        total.add_(bias)
    for lag in range(1, min(len(taps), x.shape[1])):
        earlier = x[:, :-lag] if masks is None else torch.where(masks[lag][:, lag:], x[:, :-lag], 0)
        total[:, lag:].addcmul_(earlier, taps[lag])
    return total


class _CausalConv(torch.autograd.Function):
    """Saves the raw inputs alone: the backward pass recomputes the sums before the activation, block by block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, masks: Tensor | None, silu: bool) -> Tensor:
        taps, shift = _as_taps(x, weight, bias)
        ctx.save_for_backward(x, weight, bias, masks)
        ctx.silu = silu
        kernels = KERNELS.for_tensors(x, taps, shift)
        if kernels is not None:
            sums = torch.empty(x.shape, dtype=taps.dtype)
            kernels.causal_conv(ctypes.byref(_Conv.of(x, taps, shift, masks, silu)), Pointer(sums))
            return sums.to(x.dtype)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for rows in _blocks(x):
            block_masks = None if masks is None else masks[:, rows]
            total = _shifted_sum(x[rows].to(taps.dtype), taps, shift, block_masks)
            y[rows] = F.silu(total, inplace=True) if silu else total
        return y

    @staticmethod
    @manual_backward
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, all_masks = ctx.saved_tensors
        taps, shift = _as_taps(x, weight, bias)
        kernels = KERNELS.for_tensors(x, taps, shift, grad_y)
        if kernels is None:
            grad_x, grad_taps, grad_bias = _gradients(x, taps, shift, all_masks, ctx.silu, grad_y)
        else:
            grad_x, grad_taps, grad_bias = _native_gradients(kernels, x, taps, shift, all_masks, ctx.silu, grad_y)
        grad_weight = grad_taps.flip(0).t().to(weight.dtype)
        return grad_x, grad_weight, None if bias is None else grad_bias.to(bias.dtype), None, None


def _gradients(
    x: Tensor, taps: Tensor, bias: Tensor | None, all_masks: Tensor | None, silu: bool, grad_y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x [B,T,C], taps [W,C] and bias [C]."""
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_taps, grad_bias = torch.zeros_like(taps), torch.zeros_like(taps[0])
    for rows in _blocks(x):
        inputs, grad = x[rows].to(taps.dtype), grad_y[rows].to(taps.dtype)
        masks = None if all_masks is None else all_masks[:, rows]
        # of the sums z: dL/dz = dL/dy act'(z); dL/dbias = sum_t dL/dz_t
        if silu:
            grad = torch.ops.aten.silu_backward(grad, _shifted_sum(inputs, taps, bias, masks))
        if bias is not None:
            grad_bias += grad.sum((0, 1))
        # z_t = sum_j w_j x_{t-j}: dL/dx_s = sum_j w_j dL/dz_{s+j}, dL/dw_j = sum_t dL/dz_t x_{t-j}
        grad_inputs = grad * taps[0]
        grad_taps[0] += (grad * inputs).sum((0, 1))
        for lag in range(1, min(len(taps), x.shape[1])):
            later = grad[:, lag:] if masks is None else torch.where(masks[lag][:, lag:], grad[:, lag:], 0)
            grad_inputs[:, :-lag].addcmul_(later, taps[lag])
            grad_taps[lag] += (later * inputs[:, :-lag]).sum((0, 1))
        grad_x[rows] = grad_inputs
    return grad_x, grad_taps, grad_bias


class _Conv(Struct):
    """What both kernels read, as `ops/kernels/causal_conv.c` has it."""

    _fields_ = fields("batch length channels width silu threads", "x taps bias masks")

    @classmethod
    def of(cls, x: Tensor, taps: Tensor, bias: Tensor | None, masks: Tensor | None, silu: bool) -> _Conv:
        sizes = (*x.shape, len(taps), int(silu), torch.get_num_threads())
        return cls(*sizes, *contiguous(x.to(taps.dtype), taps, bias, masks))


def _native_gradients(
    kernels: Any,
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    masks: Tensor | None,
    silu: bool,
    grad_y: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_gradients`, with sums over time for each row, which are added here."""
    grad_x = torch.empty(x.shape, dtype=taps.dtype)
    grad_taps, grad_bias = taps.new_zeros(len(x), *taps.shape), taps.new_zeros(len(x), x.shape[2])
    conv = _Conv.of(x, taps, bias, masks, silu)
    results = Pointer(grad_x), Pointer(grad_taps), Pointer(grad_bias)
    must_have_memory(
        kernels.causal_conv_backward(ctypes.byref(conv), Pointer(grad_y.to(taps.dtype).contiguous()), *results)
    )
    return grad_x.to(x.dtype), grad_taps.sum(0), grad_bias.sum(0)


def _as_taps(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights [W,C] ordered by lag and bias, in the dtype of the sums."""
    dtype = state_dtype(x)
    return weight.to(dtype).t().flip(0).contiguous(), None if bias is None else bias.to(dtype)


_conv = as_custom_op(_CausalConv, ("x",))


def _fusible_conv(x: Tensor, weight: Tensor, bias: Tensor | None, masks: Tensor | None, silu: bool) -> Tensor:
    """The same sum out of place, for a compiler to fuse and differentiate."""
    taps, shift = _as_taps(x, weight, bias)
    total = x * taps[0]
    if shift is not None:
        total = total + shift
    for lag in range(1, len(taps)):
        earlier = F.pad(x, (0, 0, lag, 0))[:, : x.shape[1]]
        total = total + (earlier if masks is None else torch.where(masks[lag], earlier, 0)) * taps[lag]
    return (F.silu(total) if silu else total).to(x.dtype)


def _last_valid(x: Tensor, num_valid: Tensor | None, width: int) -> Tensor:
    """The `width` entries [B,width,C] of x [B,width+T,C] that end at each row's last valid token."""
    if num_valid is None:
        return x[:, x.shape[1] - width :]
    index = num_valid.to(x.device).long()[:, None] + torch.arange(width, device=x.device)
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _final_state(
    x: Tensor, initial_state: Tensor | None, width: int, segment_ids: Tensor | None, num_valid: Tensor | None
) -> Tensor:
    """Last `width` raw inputs [B,C,width], zero before the document that is running at the end."""
    if initial_state is not None or num_valid is not None or x.shape[1] < width:
        history = x.new_zeros(x.shape[0], width, x.shape[2]) if initial_state is None else initial_state.mT.to(x.dtype)
        x = torch.cat([history, x], dim=1)
    state = _last_valid(x, num_valid, width)
    if segment_ids is not None and width > 0:
        reach = _lag_masks(segment_ids, width, history=1).flip(0).movedim(0, -1).squeeze(-2)
        state = torch.where(_last_valid(reach, num_valid, 1).mT, state, 0)
    return state.mT


def naive_causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    output_final_state: bool = False,
    num_valid: Tensor | None = None,
    initial_state: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Reference: one token after the other through a window of the last W inputs. Same arguments as `causal_conv1d`."""
    width = weight.shape[1]
    window = x.new_zeros(x.shape[0], x.shape[2], width - 1) if initial_state is None else initial_state.to(x.dtype)
    final = window
    outputs = []
    for t, x_t in enumerate(x.unbind(1)):
        if segment_ids is not None and t > 0:
            window = torch.where((segment_ids[:, t] == segment_ids[:, t - 1])[:, None, None], window, 0)
        window = torch.cat([window, x_t.unsqueeze(-1)], dim=-1)
        y = (window * weight).sum(-1)
        y = y if bias is None else y + bias
        outputs.append(F.silu(y) if activation == "silu" else y)
        window = window[..., 1:]
        final = window if num_valid is None else torch.where((t < num_valid)[:, None, None], window, final)
    return torch.stack(outputs, 1).to(x.dtype), final if output_final_state else None


def _step(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token, x [B,1,C]: (y [B,1,C], next state [B,C,W-1])."""
    newest = x.mT
    window = (
        F.pad(newest, (weight.shape[1] - 1, 0)) if state is None else torch.cat([state.to(x.dtype), newest], dim=-1)
    )
    compute = state_dtype(x)
    y = (window * weight.to(compute)).sum(-1)
    if bias is not None:
        y = y + bias
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype).unsqueeze(1), window[..., 1:]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    initial_state: Tensor | None = None,
    segment_ids: Tensor | None = None,
    output_final_state: bool = False,
    num_valid: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Depthwise causal convolution over time, then `activation`.

    Args:
        x: inputs [B,T,C], T >= 1. Padding enters as zeros.
        weight: [C,W], the newest input at index W-1 (the layout of `nn.Conv1d`'s [C,1,W] without its middle axis).
        bias: [C] or None.
        activation: None or "silu".
        initial_state: the W-1 inputs before the row, [B,C,W-1]; zeros where None. They are of the first document.
        segment_ids: [B,T] integers, one per document of a packed row.
        output_final_state: also return the last W-1 inputs.
        num_valid: [B] integers in 0..T: a row's valid tokens are its first ones; the state ends at the last of these.

    Returns:
        (y [B,T,C], state [B,C,W-1] or None), both in the dtype of x; y is undefined after the valid tokens of a row.

    Raises:
        ValueError: unknown `activation`, or channel counts that differ.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: {activation!r} is not known; allowed: None, 'silu'")
    if weight.dim() != 2 or weight.shape[0] != x.shape[2]:
        raise ValueError(
            f"weight: shape {tuple(weight.shape)} does not fit x with {x.shape[2]} channels; expected [C,W]"
        )
    width = weight.shape[1]
    if x.shape[1] == 1 and num_valid is None:
        y, window = _step(x, weight, bias, activation, initial_state)
        return y, window if output_final_state else None

    history = 0 if initial_state is None else width - 1
    inputs = x if initial_state is None else torch.cat([initial_state.mT.to(x.dtype), x], dim=1)
    masks = None if segment_ids is None else _lag_masks(segment_ids, width, history)
    # On a CPU what a compiler makes of it takes twice the time of the operator.
    conv = _fusible_conv if torch.compiler.is_compiling() and x.device.type != "cpu" else _conv
    y = conv(inputs, weight, bias, masks, activation == "silu")
    state = _final_state(x, initial_state, width - 1, segment_ids, num_valid) if output_final_state else None
    return y[:, history:], state


def token_shift(
    x: Tensor,
    *,
    num_valid: Tensor | None = None,
    output_final_state: bool = False,
    initial_state: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The token before each token: y_t = x_{t-1}, zeros at the start of a document.

    Args:
        x: [B,T,D].
        initial_state: the input before the row, [B,D]; zeros where None.
        segment_ids: [B,T] integers, one per document of a packed row.
        output_final_state: also return the last input.
        num_valid: [B] integers in 0..T: a row's valid tokens are its first ones, and the state is the last of these.

    Returns:
        (y [B,T,D], state [B,D] or None), both in the dtype of x.
    """
    before = torch.zeros_like(x[:, 0]) if initial_state is None else initial_state.to(x.dtype)
    window = torch.cat([before.unsqueeze(1), x], dim=1)
    y = window[:, :-1]
    if segment_ids is not None:
        y = torch.where(document_keep(segment_ids, torch.bool).unsqueeze(-1), y, 0)
    if not output_final_state:
        return y, None
    return y, window[:, -1] if num_valid is None else _last_valid(window, num_valid, 1).squeeze(1)
