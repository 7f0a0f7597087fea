"""Elementwise gated recurrence of HGRN (Qin et al. 2023, arXiv 2311.04823): one state number per channel.

    h_t = f_t * h_{t-1} + i_t

with the forget gate f in [0,1]; states are fp32. With R_t the gradient of h_t through all later ones,

    R_t = dL/dh_t + f_{t+1} R_{t+1}      dL/di_t = R_t      dL/df_t = R_t h_{t-1}      dL/dh_0 = f_1 R_1

The gate enters as such and not as its logarithm: only products of gates are formed, which can underflow to the right
answer but never overflow. The operator writes each step straight into its output and saves only f and h. Where a step
is too small to pay for its launch, all chunks of the row advance together and one step per chunk joins them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from .backend import run_fla
from .recurrence import Call, Recurrence

# The module's own name: a copy of this file elsewhere (a model bundled with its code) registers operators of its own.
NAMESPACE = re.sub(r"\W", "_", __name__)
CHUNK = 32
# Measured on a CPU: chunks pay from this length on while one step [B,D] has no more elements than this.
CHUNKED_LENGTH = 256
CHUNKED_STEP_ELEMENTS = 2048


@dataclass(eq=False, repr=False)
class HgrnScan(Call[Tensor]):
    """h_t = f_t * h_{t-1} + i_t: one number per channel, gated (HGRN; also a moving average with f = 1 - i's weight).

    The output [B, T, D] has i's dtype, the state is fp32 (fp64 for fp64 inputs). Differentiable once in every tensor.
    """

    i: Annotated[Tensor, "B T D", "inputs; 0 at padding"]
    f: Annotated[
        Tensor,
        "B T D",
        "forget gates in [0,1], best made in fp32 (near 1 a bf16 gate has lost its memory); 1 at padding",
    ]

    states = ("B D",)
    output = "i"
    rounds_fp32 = False

    def naive(self) -> tuple[Tensor, Tensor]:
        def advance(state: Tensor, i: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
            state = f * state + i
            return state, state

        return self.each_token(advance, self.i, self.f)

    def step(self) -> tuple[Tensor, Tensor]:
        inputs, gates = self.i.to(self.dtype), self.f.to(self.dtype)
        h = inputs if self.state is None else torch.addcmul(inputs, gates, self.state.unsqueeze(1))
        return h, h[:, -1]

    def chunk(self) -> tuple[Tensor, Tensor]:
        return self._through(False)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Forward and backward by the kernel's forward pass: its own gradient is that of log gates, and lost at shut
        ones."""
        return self._through(True)

    def _through(self, kernel: bool) -> tuple[Tensor, Tensor]:
        dtype = torch.float32 if kernel else self.dtype
        gates, keep = self.f.to(dtype), self.keep()
        if keep is not None:
            gates = gates * keep.unsqueeze(-1)
        h = _scan(self.i.to(dtype), gates, self.state, kernel)
        return h, h[:, -1]


def _walk(values: Sequence[Tensor], gates: Sequence[Tensor], out: Sequence[Tensor], state: Tensor | None) -> None:
    """out_t = values_t + gates_t * out_{t-1} in the order of the sequences, from `state` (zeros where None)."""
    if state is None:
        out[0].copy_(values[0])
        state, values, gates, out = out[0], values[1:], gates[1:], out[1:]
    for value, gate, target in zip(values, gates, out, strict=True):
        torch.addcmul(value, gate, state, out=target)
        state = target


def _walk_chunks(values: Tensor, gates: Tensor, out: Tensor, state: Tensor | None) -> None:
    """The same over [B,T,D] tensors, T a multiple of CHUNK: every chunk from a zero state, then joined in order."""
    values, gates, out = (x.unflatten(1, (-1, CHUNK)) for x in (values, gates, out))
    _walk(values.unbind(2), gates.unbind(2), out.unbind(2), None)
    products = torch.empty_like(out)  # of the gates from the chunk's start up to each step
    _walk_products(gates.unbind(2), products.unbind(2))
    chunks = list(zip(products.unbind(1), out.unbind(1), strict=True))
    if state is None:
        state = chunks.pop(0)[1][:, -1]
    for product, chunk in chunks:
        chunk.addcmul_(product, state.unsqueeze(1))
        state = chunk[:, -1]


def _walk_products(gates: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    out[0].copy_(gates[0])
    for before, gate, target in zip(out, gates[1:], out[1:], strict=False):
        torch.mul(before, gate, out=target)


def _chunked_length(x: Tensor) -> int:
    """How many leading steps of [B,T,D] to take in chunks: all whole chunks, or none where plain steps are faster."""
    batch, length, width = x.shape
    small_steps = x.device.type != "cpu" or batch * width <= CHUNKED_STEP_ELEMENTS
    return length - length % CHUNK if length >= CHUNKED_LENGTH and small_steps else 0


def _recur(values: Tensor, gates: Tensor, state: Tensor | None) -> Tensor:
    """h_t = values_t + gates_t * h_{t-1} for [B,T,D] tensors, T >= 1."""
    h = torch.empty(values.shape, dtype=values.dtype, device=values.device)
    chunked = _chunked_length(values)
    if chunked:
        _walk_chunks(values[:, :chunked], gates[:, :chunked], h[:, :chunked], state)
        state = h[:, chunked - 1]
    if chunked < values.shape[1]:
        _walk(values[:, chunked:].unbind(1), gates[:, chunked:].unbind(1), h[:, chunked:].unbind(1), state)
    return h


def _recur_backwards(values: Tensor, gates: Tensor, kernel: bool) -> Tensor:
    """g_t = values_t + gates_{t+1} * g_{t+1} for [B,T,D] tensors, T >= 1, from g_T = 0."""
    if kernel:
        # The first gate of the walk has nothing to act on.
        return _kernel_recur(values.flip(1), gates.roll(-1, 1).flip(1), None).flip(1)
    if _chunked_length(values):
        return _recur(values.flip(1), gates.roll(-1, 1).flip(1), None).flip(1)
    grad = torch.empty(values.shape, dtype=values.dtype, device=values.device)
    later_gates = gates.unbind(1)[:0:-1]
    # The first gate of the walk has nothing to act on.
    _walk(values.unbind(1)[::-1], (gates[:, 0], *later_gates), grad.unbind(1)[::-1], None)
    return grad


def _kernel_recur(values: Tensor, gates: Tensor, state: Tensor | None) -> Tensor:
    """`_recur` by FLA's kernel, which takes the logarithm of the gates: 0 becomes the smallest positive number."""
    log_gates = gates.clamp_min(torch.finfo(torch.float32).tiny).log()
    return run_fla("hgrn.fused_recurrent_hgrn", {"x": values, "g": log_gates}, state, False, None)[0]


@torch.library.custom_op(f"{NAMESPACE}::hgrn_scan", mutates_args=())
def _scan(i: Tensor, f: Tensor, state: Tensor | None, kernel: bool) -> Tensor:
    return _kernel_recur(i, f, state) if kernel else _recur(i, f, state)


@_scan.register_fake
def _(i: Tensor, f: Tensor, state: Tensor | None, kernel: bool) -> Tensor:
    return i.new_empty(i.shape)


@torch.library.custom_op(f"{NAMESPACE}::hgrn_scan_backward", mutates_args=())
def _scan_backward(grad_h: Tensor, f: Tensor, h: Tensor, state: Tensor | None, kernel: bool) -> tuple[Tensor, Tensor]:
    """Gradients of i and f."""
    # dL/di_t = R_t = dL/dh_t + f_{t+1} R_{t+1}; dL/df_t = R_t h_{t-1}
    grad_i = _recur_backwards(grad_h, f, kernel)
    grad_f = torch.empty_like(grad_i)
    torch.mul(grad_i[:, 1:], h[:, :-1], out=grad_f[:, 1:])
    grad_f[:, 0] = 0.0 if state is None else grad_i[:, 0] * state
    return grad_i, grad_f


@_scan_backward.register_fake
def _(grad_h: Tensor, f: Tensor, h: Tensor, state: Tensor | None, kernel: bool) -> tuple[Tensor, Tensor]:
    return f.new_empty(f.shape), f.new_empty(f.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, bool], output: Tensor) -> None:
    _, f, state, ctx.kernel = inputs
    ctx.save_for_backward(f, output, state)


def _backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
    f, h, state = ctx.saved_tensors
    grad_i, grad_f = _scan_backward(grad_h, f, h, state, ctx.kernel)
    # dL/dh_0 = f_1 R_1
    return grad_i, grad_f, None if state is None else f[:, 0] * grad_i[:, 0], None


_scan.register_autograd(_backward, setup_context=_save)

hgrn_scan = Recurrence(HgrnScan, "hgrn_scan")
