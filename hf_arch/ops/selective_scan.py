"""Selective scan of Mamba (Gu & Dao 2023): a diagonal state per channel, its step size and weights chosen by the token.

    h_t = exp(dt_t A) * h_{t-1} + dt_t x_t B_t        y_t = C_t . h_t + D x_t

with h [E,N] in fp32; optionally dt is softplus(dt), and the output y silu(z). Only exp of dt A <= 0 is formed, so no
decay can overflow. With R_t the gradient of h_t through its own and all later outputs and a_t = exp(dt_t A),
elementwise in [E,N] but for the sums,

    R_t = a_{t+1} R_{t+1} + dL/dy_t C_t               dL/dC_t = sum_E dL/dy_t h_t
    dL/d(dt x)_t = sum_N R_t B_t                      dL/dB_t = sum_E R_t dt_t x_t
    X_t = R_t a_t h_{t-1}                             dL/dA = sum_t X_t dt_t
    dL/ddt_t = sum_N X_t A + x_t dL/d(dt x)_t         dL/dx_t = dt_t dL/d(dt x)_t + D dL/dy_t

Training walks through time in place: the state of one step stays in the cache, while [B,T,E,N] would not fit anywhere.
Every `CHUNK` steps the state is kept; the backward pass recomputes the others from there. It is an operator of its own
(`torch.library`), so a compiler or a meta tensor sees one node and not T steps. On a CPU both passes are C kernels
where there are such (`ops/native.py`).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .custom_op import manual_backward
from .native import Kernels, Pointer, Struct, contiguous, fields, must_have_memory, rows
from .precision import without_autocast
from .recurrence import Call, Recurrence
from .shapes import OPTION
from .silu_gate import silu_gated
from .softplus import softplus

KERNELS = Kernels("selective_scan.c")
CHUNK = 8  # as in ops/kernels/selective_scan.c
GROUP = 128  # channels whose gradients of B and C a kernel sums, as in ops/kernels/lanes.h
# The module's own name: a copy of this file elsewhere (a model bundled with its code) registers operators of its own.
NAMESPACE = re.sub(r"\W", "_", __name__)


@dataclass(eq=False, repr=False)
class SelectiveScan(Call[Tensor]):
    """h_t = exp(dt_t A) * h_{t-1} + dt_t x_t B_t, y_t = C_t . h_t + D x_t: a diagonal state per channel (Mamba).

    The output [B, T, E] has x's dtype, the state is fp32 (fp64 for fp64 inputs). Differentiable once in every tensor.
    """

    x: Annotated[Tensor, "B T E", "inputs"]
    dt: Annotated[Tensor, "B T E", "step sizes >= 0, fp32; 0 makes a token a no-op (padding)"]
    A: Annotated[Tensor, "E N", "negative, fp32"]
    B: Annotated[Tensor, "B T N", "input weights of each token"]
    C: Annotated[Tensor, "B T N", "output weights of each token"]
    D: Annotated[Tensor | None, "E", "skip weights"] = None
    z: Annotated[Tensor | None, "B T E", "gates: the output is y silu(z)"] = None
    _: KW_ONLY
    dt_softplus: Annotated[bool, OPTION, "whether the step sizes are softplus(dt)"] = False

    states = ("B E N",)
    output = "x"

    def naive(self) -> tuple[Tensor, Tensor]:
        def advance(state: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
            decay = torch.exp(dt.unsqueeze(-1) * self.A)
            state = decay * state + (dt * x).unsqueeze(-1) * B.unsqueeze(1)
            y = (state * C.unsqueeze(1)).sum(-1)
            return y if self.D is None else y + self.D * x, state

        dt = F.softplus(self.dt) if self.dt_softplus else self.dt
        y, state = self.each_token(advance, self.x, dt, self.B, self.C)
        return y if self.z is None else y * F.silu(self.z), state

    def step(self) -> tuple[Tensor, Tensor]:
        dt, A, B, C, D = self.in_state_dtype()
        dt, x = dt.mT, self.x.mT.to(dt.dtype)  # [B,E,1]
        inflow = dt * x * B
        state = inflow if self.state is None else torch.addcmul(inflow, self.state, torch.exp(dt * A))
        y = (state * C).sum(-1)
        if D is not None:
            y = torch.addcmul(y, x.squeeze(-1), D)
        return self.gated(y.unsqueeze(1)), state

    def chunk(self) -> tuple[Tensor, Tensor]:
        history = None if self.state is None else self.state.mT
        if self.is_fused():
            given = (self.x, self.dt, self.A, self.B, self.C, self.D, self.z, history, self.keep())
            y, final = _FusedScan.apply(*given, self.dt_softplus, torch.is_grad_enabled())
            return y, final.mT
        dt, A, B, C, D = self.in_state_dtype()
        y, final, _ = _scan(self.x, dt, A, B, C, D, history, self.keep(), torch.is_grad_enabled())
        return self.gated(y), final.mT

    def is_fused(self) -> bool:
        """Whether the kernel makes step sizes and gates too: all of fp32 on a CPU, and nobody watches."""
        tensors = (self.x, self.dt, self.A, self.B, self.C, self.D, self.z, self.state)
        plain = all(x is None or x.dtype == torch.float32 for x in tensors)
        return plain and (self.z is not None or self.dt_softplus) and KERNELS.for_tensors(*tensors) is not None

    def gated(self, y: Tensor) -> Tensor:
        return y if self.z is None else silu_gated(y.to(self.z.dtype), self.z)

    def in_state_dtype(self) -> tuple[Any, ...]:
        """Step sizes, A, B, C and D."""
        dt = self.dt.to(self.dtype)
        others = (None if x is None else x.to(self.dtype) for x in (self.A, self.B, self.C, self.D))
        return (softplus(dt) if self.dt_softplus else dt, *others)


def _rows(x: Tensor) -> tuple[Tensor, ...]:
    """The steps of [B,T,D] as views [B,1,D]."""
    return x.unsqueeze(2).unbind(1)


def _columns(x: Tensor) -> tuple[Tensor, ...]:
    """The steps of [B,T,D] as views [B,D,1]."""
    return x.unsqueeze(3).unbind(1)


def _chunk_decays(dt: Tensor, A_t: Tensor, keep: Tensor | None, steps: slice, buffer: Tensor) -> tuple[Tensor, ...]:
    """exp(dt_t A), and 0 at a document's first token, for each step of a chunk: views [B,N,E] of the buffer."""
    dt = dt[:, steps]
    decays = torch.mul(dt.unsqueeze(2), A_t, out=buffer[:, : dt.shape[1]]).exp_()
    if keep is not None:
        decays.mul_(keep[:, steps, None, None])
    return decays.unbind(1)


@torch.library.custom_op(f"{NAMESPACE}::scan", mutates_args=())
def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    keep: Tensor | None,
    for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y [B,T,E], final state [B,N,E], state before each chunk [T/CHUNK,B,N,E]): N before E inside, for long rows."""
    batch, length, width = x.shape
    A_t = A.t().contiguous()
    kernels = KERNELS.for_tensors(dt, A, B, C, D, state, keep)
    if kernels is not None:
        y, state, kept = _native_forward(kernels, _Scan.of(x, dt, A_t, B, C, D, keep), dt, A_t, state, for_backward)
        return y.to(x.dtype), state, kept
    state = _own(state, dt, (batch, A.shape[1], width))
    y = dt.new_empty(x.shape)
    kept = dt.new_empty(_kept_chunks(length, for_backward), *state.shape)
    buffer = dt.new_empty(batch, min(CHUNK, length), *A_t.shape)
    inflow, B_steps, C_steps, y_steps = _rows(dt * x), _columns(B), _rows(C), _rows(y)
    with without_autocast(x):
        for start in range(0, length, CHUNK):
            if for_backward:
                kept[start // CHUNK] = state
            decays = _chunk_decays(dt, A_t, keep, slice(start, start + CHUNK), buffer)
            for t, decay in enumerate(decays, start):
                state.mul_(decay).addcmul_(inflow[t], B_steps[t])
                torch.bmm(C_steps[t], state, out=y_steps[t])
    if D is not None:
        y.addcmul_(x.to(y.dtype), D)
    return y.to(x.dtype), state, kept


def _own(state: Tensor | None, like: Tensor, shape: Sequence[int]) -> Tensor:
    """A contiguous copy, zeros where None."""
    return like.new_zeros(shape) if state is None else state.clone(memory_format=torch.contiguous_format)


def _kept_chunks(length: int, for_backward: bool) -> int:
    return -(-length // CHUNK) if for_backward else 0


@_scan.register_fake
def _(x: Tensor, dt: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = x.shape
    state_shape = (batch, A.shape[1], width)
    kept = dt.new_empty(_kept_chunks(length, others[-1]), *state_shape)
    return x.new_empty(x.shape), dt.new_empty(state_shape), kept


@torch.library.custom_op(f"{NAMESPACE}::scan_backward", mutates_args=())
def _scan_backward(
    grad_y: Tensor,
    grad_state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    keep: Tensor | None,
    kept: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D (zeros where None) and the initial state [B,N,E]."""
    batch, length, width = x.shape
    A_t = A.t().contiguous()
    grad_y = grad_y.to(dt.dtype)
    # The gradient of the state after step t, then of the state before it.
    grad = _own(grad_state, dt, kept.shape[1:])
    kernels = KERNELS.for_tensors(grad_y, grad, dt, A, B, C, D, keep, kept)
    if kernels is not None:
        scan = _Scan.of(x, dt, A_t, B, C, D, keep)
        return _native_backward(kernels, scan, grad_y.contiguous(), grad, x, dt, A, B, kept)
    grad_A = torch.zeros_like(grad)
    grad_inflow, grad_dt = torch.empty_like(grad_y), torch.empty_like(grad_y)
    grad_B, grad_C = B.new_empty(B.shape), C.new_empty(C.shape)
    chunk = min(CHUNK, length)
    buffer = dt.new_empty(batch, chunk, *A_t.shape)
    states = dt.new_empty(chunk + 1, *grad.shape).unbind(0)
    grad_exponent = torch.empty_like(grad)
    inflow = dt * x
    inflow_rows, inflow_columns, dt_rows = _rows(inflow), _columns(inflow), _rows(dt)
    B_rows, B_columns, C_columns = _rows(B), _columns(B), _columns(C)
    grad_y_rows, grad_y_columns = _rows(grad_y), _columns(grad_y)
    grad_B_columns, grad_C_columns = _columns(grad_B), _columns(grad_C)
    grad_inflow_rows, grad_dt_steps = _rows(grad_inflow), grad_dt.unbind(1)
    with without_autocast(x):
        for start in reversed(range(0, length, CHUNK)):
            decays = _chunk_decays(dt, A_t, keep, slice(start, start + CHUNK), buffer)
            states[0].copy_(kept[start // CHUNK])
            for i, decay in enumerate(decays):
                torch.mul(states[i], decay, out=states[i + 1]).addcmul_(inflow_rows[start + i], B_columns[start + i])
            for i, decay in reversed(list(enumerate(decays))):
                t = start + i
                # R_t = a_{t+1} R_{t+1} + dL/dy_t C_t; dL/dC_t = sum_E dL/dy_t h_t
                grad.addcmul_(C_columns[t], grad_y_rows[t])
                torch.bmm(states[i + 1], grad_y_columns[t], out=grad_C_columns[t])
                # dL/d(dt x)_t = sum_N R_t B_t; dL/dB_t = sum_E R_t dt_t x_t
                torch.bmm(B_rows[t], grad, out=grad_inflow_rows[t])
                torch.bmm(grad, inflow_columns[t], out=grad_B_columns[t])
                # X_t = R_t a_t h_{t-1}; dL/dA += X_t dt_t; dL/ddt_t = sum_N X_t A
                grad.mul_(decay)
                torch.mul(grad, states[i], out=grad_exponent)
                grad_A.addcmul_(grad_exponent, dt_rows[t])
                torch.sum(grad_exponent.mul_(A_t), 1, out=grad_dt_steps[t])
    # dL/ddt += x dL/d(dt x); dL/dx = dt dL/d(dt x) + D dL/dy; dL/dD = sum dL/dy x
    grad_dt.addcmul_(grad_inflow, x.to(dt.dtype))
    grad_x = grad_inflow.mul_(dt)
    grad_D = A.new_zeros(width)
    if D is not None:
        grad_D = (grad_y * x).sum((0, 1))
        grad_x.addcmul_(grad_y, D)
    return grad_x.to(x.dtype), grad_dt, grad_A.sum(0).t().contiguous(), grad_B, grad_C, grad_D, grad


class _Scan(Struct):
    """What both kernels read, as `ops/kernels/selective_scan.c` has it."""

    _fields_ = fields("batch length width states B_row C_row soft threads", "x dt A B C D z keep of_dt")

    @classmethod
    def of(
        cls,
        x: Tensor,
        dt: Tensor,
        A_t: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        keep: Tensor | None,
        z: Tensor | None = None,
        dt_softplus: bool = False,
    ) -> _Scan:
        B, C = rows(B), rows(C)
        sizes = (*x.shape, A_t.shape[0], B.stride(1), C.stride(1), int(dt_softplus), torch.get_num_threads())
        weights = Pointer(B, strided=True), Pointer(C, strided=True)
        return cls(*sizes, *contiguous(x.to(dt.dtype), dt, A_t), *weights, *contiguous(D, z, keep))


class _Gradients(Struct):
    _fields_ = fields("", "state x dt A B C D z")


def _native_forward(
    kernels: Any, scan: _Scan, dt: Tensor, A_t: Tensor, state: Tensor | None, for_backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_scan`, but for y's dtype."""
    state = _own(state, dt, (len(dt), *A_t.shape))
    y = dt.new_empty(dt.shape)
    kept = dt.new_empty(_kept_chunks(dt.shape[1], for_backward), *state.shape)
    pointers = Pointer(state), Pointer(y), Pointer(kept if for_backward else None)
    must_have_memory(kernels.selective_scan(ctypes.byref(scan), *pointers))
    return y, state, kept


def _native_backward(
    kernels: Any,
    scan: _Scan,
    grad_y: Tensor,
    grad: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    kept: Tensor,
    grad_z: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `_scan_backward`; `grad` [B,N,E] is that of the final state, and becomes that of the initial one. `grad_z` is
    written to."""
    groups = -(-x.shape[2] // GROUP)
    grad_x, grad_dt, grad_A = torch.empty_like(grad_y), torch.empty_like(grad_y), torch.zeros_like(grad)
    grad_B, grad_C = B.new_empty(2, groups, *B.shape)
    grad_D = dt.new_zeros(x.shape[0], x.shape[2])
    to = _Gradients(grad, grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z)
    must_have_memory(
        kernels.selective_scan_backward(ctypes.byref(scan), Pointer(kept), Pointer(grad_y), ctypes.byref(to))
    )
    sums = grad_A.sum(0).t().contiguous(), grad_B.sum(0), grad_C.sum(0), grad_D.sum(0)
    return grad_x.to(x.dtype), grad_dt, *sums, grad


@_scan_backward.register_fake
def _(grad_y: Tensor, grad_state: Tensor | None, *inputs: Any) -> tuple[Tensor, ...]:
    x, dt, _, kept, A, B, C, _ = inputs
    return tuple(like.new_empty(like.shape) for like in (x, dt, A, B, C, A[:, 0], kept[0]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, dt, A, B, C, D, state, keep, _ = inputs
    ctx.save_for_backward(x, dt, A, B, C, D, keep, output[2])
    ctx.has_state = state is not None
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    x, dt, A, B, C, D, keep, kept = ctx.saved_tensors
    grad_y = x.new_zeros(x.shape) if grad_y is None else grad_y
    *grads, grad_D, grad_initial = _scan_backward(grad_y, grad_state, x, dt, keep, kept, A, B, C, D)
    return (*grads, None if D is None else grad_D, grad_initial if ctx.has_state else None, None, None)


_scan.register_autograd(_backward, setup_context=_save)


class _FusedScan(torch.autograd.Function):
    """The scan of fp32 tensors by the kernels, with the step sizes' softplus and the gates: what they are made of is
    read where it is needed, and the output before the gates is computed again for their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        state: Tensor | None,
        keep: Tensor | None,
        dt_softplus: bool,
        for_backward: bool,
    ) -> tuple[Tensor, Tensor]:
        A_t = A.t().contiguous()
        ctx.has_state, ctx.dt_softplus = state is not None, dt_softplus
        ctx.set_materialize_grads(False)
        scan = _Scan.of(x, dt, A_t, B, C, D, keep, z, dt_softplus)
        y, final, kept = _native_forward(KERNELS.loaded(), scan, dt, A_t, state, for_backward)
        ctx.save_for_backward(x, dt, A, B, C, D, z, keep, kept)
        return y, final

    @staticmethod
    @manual_backward
    def backward(ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, z, keep, kept = ctx.saved_tensors
        grad_y = torch.zeros_like(x) if grad_y is None else grad_y.contiguous()
        grad = _own(grad_state, dt, kept.shape[1:])
        grad_z = None if z is None else z.new_empty(z.shape)
        scan = _Scan.of(x, dt, A.t().contiguous(), B, C, D, keep, z, ctx.dt_softplus)
        *grads, grad_D, initial = _native_backward(KERNELS.loaded(), scan, grad_y, grad, x, dt, A, B, kept, grad_z)
        return (*grads, None if D is None else grad_D, grad_z, initial if ctx.has_state else None, None, None, None)


selective_scan = Recurrence(SelectiveScan, "selective_scan")
