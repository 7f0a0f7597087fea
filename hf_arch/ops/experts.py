"""The feed-forward networks of a mixture of experts over the tokens that chose them, forwards and backwards on a CPU.

    y_t = sum_j w_tj  down_e( act(up_e x_t) )   with e = chosen_tj

Tokens are sorted by expert; each expert multiplies its own rows of one array, and its part of a weight's gradient is
written where it belongs. Moving tokens to their experts and back, with the weights, and the SiLU gate between the two
products, are one walk in C each. Under autocast the products are bf16, as those of linear layers.

Legend: N tokens, k choices of each, S = N k rows sorted by expert, E experts, D width, F their inner width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .custom_op import manual_backward
from .native import Kernels, Pointer, shapes_alone, threads_for

KERNELS = Kernels("experts.c")
_LETTERS = {torch.float32: "f", torch.bfloat16: "h"}


class Places(NamedTuple):
    """of: [N, k] int64, the row of each choice among all, sorted by expert. counts: of rows of each expert."""

    of: Tensor
    counts: list[int]


def fits(x: Tensor, weights: Tensor, *parameters: Tensor) -> bool:
    """Whether `experts_sum` can be called for these."""
    dtype = compute_dtype(x)
    known = dtype in _LETTERS and x.dtype in (torch.float32, dtype) and weights.dtype == torch.float32
    known = known and all(p.dtype in (torch.float32, dtype) for p in parameters)
    return known and KERNELS.for_tensors(x, weights, *parameters) is not None


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def experts_sum(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    activation: Callable[[Tensor], Tensor],
    gated: bool,
) -> Tensor:
    """The weighted sum of what the chosen experts make of each token, where it `fits`.

    Args:
        x: [N, D], fp32 or bf16. chosen: [N, k] int64 in [0, E). weights: [N, k], fp32.
        up: [E, 2 F, D] with the gates first where `gated`, else [E, F, D]. down: [E, D, F].

    Returns:
        [N, D] in x's dtype.
    """
    places = sorted_places(chosen, up.shape[0])
    rows = _Dispatch.apply(x, places.of, compute_dtype(x))
    inner = _Products.apply(rows, up, places.counts)
    if gated and activation is F.silu:
        inner = _PackedGate.apply(inner)
    elif gated:
        gate, value = inner.chunk(2, dim=-1)
        inner = activation(gate) * value
    else:
        inner = activation(inner)
    return _Combine.apply(_Products.apply(inner, down, places.counts), weights, places.of, x.dtype)


def sorted_places(chosen: Tensor, experts: int) -> Places:
    flat = chosen.flatten()
    order = torch.argsort(flat, stable=True)
    of = torch.empty_like(order)
    of[order] = torch.arange(len(order), device=order.device)
    if shapes_alone():  # nothing says how many there are, and all of them take the same memory
        return Places(of.view_as(chosen), [len(order) // experts + (i < len(order) % experts) for i in range(experts)])
    return Places(of.view_as(chosen), torch.bincount(flat, minlength=experts).tolist())


def _call(name: str, places: Tensor, width: int, *tensors: Tensor | None) -> None:
    """A kernel that walks through the tokens; its name ends with the letters of the dtypes."""
    threads = 1 if tensors[0] is None else threads_for(tensors[0])
    numbers = (ctypes.c_int64(x) for x in (*places.shape, width, threads))
    getattr(KERNELS.loaded(), name)(*numbers, Pointer(tensors[0]), Pointer(places), *map(Pointer, tensors[1:]))


def _letters(*tensors: Tensor) -> str:
    return "_".join(_LETTERS[x.dtype] for x in tensors)


def _dispatched(x: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    rows = x.new_empty(places.numel(), x.shape[-1], dtype=dtype)
    x = x.contiguous()
    _call(f"dispatch_{_letters(x, rows)}", places, x.shape[-1], x, rows)
    return rows


def _combined(rows: Tensor, places: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    out = rows.new_empty(len(places), rows.shape[-1], dtype=dtype)
    rows, weights = rows.contiguous(), None if weights is None else weights.contiguous()
    _call(f"combine_{_letters(rows, out)}", places, rows.shape[-1], rows, weights, out)
    return out


class _Dispatch(torch.autograd.Function):
    """[N, D] -> [S, D], each token at the rows of its choices. Its gradient sums over these."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(places)
        ctx.dtype = x.dtype
        return _dispatched(x, places, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return grad[places].sum(1).to(ctx.dtype), None, None
        return _combined(grad, places, None, ctx.dtype), None, None


class _Combine(torch.autograd.Function):
    """rows [S, D], weights [N, k] -> [N, D]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(rows, weights, places)
        return _combined(rows, places, weights, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, places = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            scaled = (grad[:, None] * weights[..., None]).flatten(0, 1)
            of_weights = (grad[:, None] * rows[places]).sum(-1, dtype=weights.dtype)
            order = torch.argsort(places.flatten())
            return scaled[order].to(rows.dtype), of_weights, None, None
        grad, rows, weights = (x.contiguous() for x in (grad, rows, weights))
        grad_rows, grad_weights = torch.empty_like(rows), torch.empty_like(weights)
        name = f"combine_backward_{_letters(rows, grad)}"
        _call(name, places, rows.shape[-1], rows, weights, grad, grad_rows, grad_weights)
        return grad_rows, grad_weights, None, None


class _Products(torch.autograd.Function):
    """rows [S, I], weight [E, O, I], counts of each expert's rows -> [S, O], in their dtype, to which the weight is
    rounded."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        ctx.narrow = weight.detach().to(rows.dtype) if weight.dtype != rows.dtype else None
        ctx.save_for_backward(rows, weight)
        out = rows.new_empty(len(rows), weight.shape[1])
        for of_expert, of_rows, to in _parts(counts, weight if ctx.narrow is None else ctx.narrow, rows, out):
            if len(to):
                torch.mm(of_rows, of_expert.mT, out=to)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            parts = list(_parts(ctx.counts, weight.to(rows.dtype), rows, grad))
            of_rows = torch.cat([g @ of_expert for of_expert, _, g in parts])
            return of_rows, torch.stack([g.mT @ x for _, x, g in parts]).to(weight.dtype), None
        return _Products.by_hand(ctx, grad, rows, weight)

    @staticmethod
    @manual_backward
    def by_hand(ctx: Any, grad: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
        narrow = weight if ctx.narrow is None else ctx.narrow
        of_rows, of_weight = None, None
        if ctx.needs_input_grad[0]:
            of_rows = torch.empty_like(rows)
            for of_expert, g, to in _parts(ctx.counts, narrow, grad, of_rows):
                if len(to):
                    torch.mm(g, of_expert, out=to)
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight)
            for to, x, g in _parts(ctx.counts, of_weight, rows, grad):
                if len(x) == 0:
                    to.zero_()
                elif to.dtype == g.dtype:
                    torch.mm(g.mT, x, out=to)
                else:
                    to.copy_(g.mT @ x)
        return of_rows, of_weight, None


def _parts(counts: list[int], weight: Tensor, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each expert's weight and rows."""
    return zip(weight.unbind(0), *(x.split(counts) for x in rows), strict=True)


class _PackedGate(torch.autograd.Function):
    """[S, 2 F], gates first -> silu(gate) x [S, F]. Saves its input alone."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        return _gate("", both, both.new_empty(len(both), both.shape[1] // 2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            gate, x = both.chunk(2, dim=-1)
            sigmoid = gate.sigmoid()
            return torch.cat((grad * x * sigmoid * (1 + gate * (1 - sigmoid)), grad * F.silu(gate)), -1)
        return _gate("_backward", both, grad.contiguous(), torch.empty_like(both))


def _gate(suffix: str, both: Tensor, *tensors: Tensor) -> Tensor:
    kernel = getattr(KERNELS.loaded(), f"packed_gate_{_LETTERS[both.dtype]}{suffix}")
    sizes = (ctypes.c_int64(x) for x in (len(both), both.shape[1] // 2, threads_for(both)))
    kernel(*sizes, Pointer(both), *map(Pointer, tensors))
    return tensors[-1]
