"""Diagonal state space S4D (Gu et al. 2022, arXiv 2206.11893): a linear system per channel, the same at every step.

    s_t = a s_{t-1} + b u_t      y_t = 2 Re(C . s_t) + D u_t      a = exp(dt A), b = (a - 1) / A * B (zero-order hold)

with M complex numbers a channel that stand for M conjugate pairs, or N real ones (then without the factor 2).

The row is cut in chunks of L steps. Inside a chunk the output is a product with the Toeplitz matrix of the kernel
K_l = 2 Re(sum C b a^l); the state between chunks enters by powers of a: `y = [u, s] @ [Toeplitz; C a^i]`. Measured
on a CPU, forward and backward, this equals a convolution by FFT in speed at T = 1024 and takes half its time at 4096;
besides it is bit-causal and continues from any state.

Nothing can make such a system stand still, so padding has to come first, as zeros with no initial state, or last,
with `num_valid`. Documents of a packed row are run as rows of their own, in groups of similar length.
Legend: B batch, T time, D channels, M complex states, N real states, L chunk, Q chunks, S numbers of a state (2M or N).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .chunk_states import chunk_states
from .documents import document_keep
from .recurrence import ChunkedCall, Recurrence


def discretise(log_dt: Tensor, A_re: Tensor, A_im: Tensor | None, B: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Zero-order hold (dt A, a, b): complex [D,M], or real [D,N] where `A_im` is None. Arguments of `diagonal_ssm`."""
    dt = log_dt.exp().unsqueeze(-1)
    real = dt * A_re
    # a - 1 without the cancellation of small dt A.
    gain = torch.expm1(real)
    if A_im is None:
        inflow = gain / A_re
        return real, gain + 1, inflow if B is None else inflow * B
    imag = dt * A_im
    size, small = real.exp(), gain * imag.cos() - 2 * (imag / 2).sin().square()
    # Where nothing is left of a the plain difference is exact, and the other's gradient is what its terms leave over.
    gain = torch.complex(torch.where(size < 0.5, size * imag.cos() - 1, small), size * imag.sin())
    inflow = gain / torch.complex(A_re, A_im)
    inflow = inflow if B is None else inflow * torch.view_as_complex(B.contiguous())
    return torch.complex(real, imag), gain + 1, inflow


def _powers(exponent: Tensor, steps: Tensor) -> Tensor:
    """exp(steps * exponent), real or complex; the complex one from real functions, which have vector instructions."""
    if not exponent.is_complex():
        return torch.exp(exponent * steps)
    size, angle = torch.exp(exponent.real * steps), exponent.imag * steps
    return torch.complex(size * angle.cos(), size * angle.sin())


def _as_numbers(state: Tensor) -> Tensor:
    """Complex [..,M] as real [..,2M]; real states as they are."""
    return torch.view_as_real(state).flatten(-2) if state.is_complex() else state


def _from_numbers(state: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_as_numbers` where `like` is complex."""
    return torch.view_as_complex(state.unflatten(-1, (-1, 2)).contiguous()) if like.is_complex() else state


def _readout(C: Tensor, A_im: Tensor | None) -> Tensor:
    """C as complex numbers with the factor 2 of the conjugate pairs, or as it is."""
    return C if A_im is None else 2 * torch.view_as_complex(C.contiguous())


@dataclass(eq=False, repr=False)
class DiagonalSsm(ChunkedCall[Tensor]):
    """s_t = a s_{t-1} + b u_t, y_t = 2 Re(C . s_t) + D u_t: a linear system per channel, constant in time (S4D).

    a = exp(dt A) and b = (a - 1) / A * B (zero-order hold); N complex numbers a channel stand for conjugate pairs. A
    real system (`A_im` None) has C and B of shape [D, N] and no factor 2.

    Padding enters as zeros: after the tokens with `num_valid`, or before them without `initial_state`.

    The output [B, T, D] has u's dtype and is undefined at padding; the state, that after the last valid token, is fp32
    (fp64 for fp64 inputs). Chunks have 32 tokens.
    """

    u: Annotated[Tensor, "B T D", "inputs"]
    log_dt: Annotated[Tensor, "D", "logarithm of the step size"]
    A_re: Annotated[Tensor, "D N", "real part of the diagonal, negative"]
    A_im: Annotated[Tensor | None, "D N", "its imaginary part; None: a real system"]
    C: Annotated[Tensor, "D N 2 | D N", "readout as (real, imaginary), or real"]
    B: Annotated[Tensor | None, "D N 2 | D N", "input weights; None: ones"] = None
    D: Annotated[Tensor | None, "D", "skip weights"] = None
    _: KW_ONLY
    num_valid: Annotated[Tensor | None, "B", "integers in 0..T: a row's valid tokens are its first ones"] = None

    states = ("B D N 2 | B D N",)
    output = "u"

    def _check(self) -> dict[str, int]:
        sizes = super()._check()
        kind = "a real system has [D, N]" if self.A_im is None else "a complex system has [D, N, 2]"
        for name, x, rank in (("C", self.C, 2), ("B", self.B, 2), ("initial_state", self.initial_state, 3)):
            if x is not None and x.dim() != rank + (self.A_im is not None):
                raise ValueError(f"{name}: shape {tuple(x.shape)} is not allowed; {kind} numbers")
        return sizes

    def empty_state(self) -> Tensor:
        numbers = () if self.A_im is None else (2,)
        return self.u.new_zeros(len(self.u), *self.A_re.shape, *numbers, dtype=self.dtype)

    def naive(self) -> tuple[Tensor, Tensor]:
        def advance(state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            numbers = state if self.A_im is None else torch.view_as_complex(state.contiguous())
            numbers = decay * numbers + inflow * u.unsqueeze(-1)
            y = (readout * numbers).sum(-1)
            y = y.real if y.is_complex() else y
            state = torch.view_as_real(numbers) if numbers.is_complex() else numbers
            return y if self.D is None else y + self.D * u, state

        _, decay, inflow = discretise(self.log_dt, self.A_re, self.A_im, self.B)
        readout = _readout(self.C, self.A_im)
        return self.each_token(advance, self.u, num_valid=self.num_valid)

    def is_step(self) -> bool:
        return super().is_step() and self.num_valid is None

    def step(self) -> tuple[Tensor, Tensor]:
        _, decay, inflow, readout, state = self.discretised()
        return self.with_skip(*_step(self.u.to(self.dtype), decay, inflow, readout, state))

    def chunk(self) -> tuple[Tensor, Tensor]:
        exponent, _, inflow, readout, state = self.discretised()
        system = _System.build(exponent, inflow, readout, self.chunk_length())
        arguments = (self.u.to(self.dtype), system, state, self.num_valid)
        if self.segment_ids is None:
            return self.with_skip(*_rows(*arguments))
        return self.with_skip(*_documents(*arguments, self.segment_ids))

    def discretised(self) -> tuple[Any, ...]:
        """dt A, a and b (see `discretise`), the readout, and the initial state as complex or real numbers, or None."""
        log_dt, A_re = self.log_dt.to(self.dtype), self.A_re.to(self.dtype)
        A_im, B = (None if x is None else x.to(self.dtype) for x in (self.A_im, self.B))
        exponent, decay, inflow = discretise(log_dt, A_re, A_im, B)
        state = None if self.state is None else _from_numbers(self.state.flatten(2), exponent)
        return exponent, decay, inflow, _readout(self.C.to(self.dtype), self.A_im), state

    def with_skip(self, y: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
        """y + D u, and the state in real numbers."""
        if self.D is not None:
            y = torch.addcmul(y, self.u.to(self.dtype), self.D.to(self.dtype))
        return y, torch.view_as_real(final) if final.is_complex() else final


def _step(u: Tensor, decay: Tensor, inflow: Tensor, readout: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token: (y [B,1,D], next state [B,D,M])."""
    new = inflow * u.mT
    if state is not None:
        new = torch.addcmul(new, decay, state)
    weights = _as_numbers(readout.conj().resolve_conj())
    return (_as_numbers(new) * weights).sum(-1).unsqueeze(1), new


class _Transpose(torch.autograd.Function):
    """[m,n] to contiguous [n,m], its gradient contiguous as well.

    A plain transposition is up to ten times as fast as the same permutation of more axes, and batched products would
    copy strided operands row by row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.t().contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.t().contiguous()


class _System(NamedTuple):
    """The discretised system over a chunk of L steps, as matrices: applied to rows of inputs and of states."""

    powers: Tensor  # [D,L+1,M], a^l
    toeplitz: Tensor  # [D,L,L], inputs (rows) to outputs (columns)
    enter: Tensor  # [D,L,S], inputs to the state at the end of the chunk
    leave: Tensor  # [D,S,L], state before the chunk to outputs

    @classmethod
    def build(cls, exponent: Tensor, inflow: Tensor, readout: Tensor, chunk: int) -> _System:
        steps = torch.arange(chunk + 1, device=exponent.device, dtype=exponent.real.dtype)
        powers = _powers(exponent.unsqueeze(1), steps[:, None])
        impulse = _as_numbers(inflow.unsqueeze(1) * powers[:, :-1])  # [D,L,S], the state l steps after an input of 1
        weights = readout.conj().unsqueeze(1)  # Re(C s) = Re(conj C) Re(s) + Im(conj C) Im(s)
        kernel = (impulse @ _as_numbers(weights.resolve_conj()).mT).squeeze(-1)  # [D,L]
        # Row i is the kernel shifted by i, zeros before it.
        toeplitz = F.pad(kernel, (chunk - 1, 0)).unfold(1, chunk, 1).flip(1)
        leave = _as_numbers((weights * powers[:, 1:].conj()).resolve_conj()).mT
        return cls(powers, toeplitz, impulse.flip(1), leave)

    def shorter(self, chunk: int) -> _System:
        """The same over the first `chunk` steps."""
        toeplitz = self.toeplitz[:, :chunk, :chunk]
        return _System(self.powers[:, : chunk + 1], toeplitz, self.enter[:, -chunk:], self.leave[..., :chunk])


def _rows(u: Tensor, system: _System, state: Tensor | None, num_valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of one document each: (y [B,T,D], state [B,D,M] after the last valid token)."""
    batch, length, _ = u.shape
    powers, toeplitz, enter, leave = system
    chunk = powers.shape[1] - 1
    count = -(-length // chunk)
    padded = F.pad(u, (0, 0, 0, count * chunk - length))
    chunks = _Transpose.apply(padded.flatten(0, 1)).unflatten(1, (batch * count, chunk))  # [D,B*Q,L]
    increments = _from_numbers((chunks @ enter).unflatten(1, (batch, count)), powers)  # [D,B,Q,M]
    state = torch.zeros_like(increments[:, :, 0]) if state is None else state.transpose(0, 1)
    total = powers[:, -1, None, None].expand(-1, -1, count, -1)
    before, last = chunk_states(increments, total, state, 2)
    y = torch.baddbmm(_as_numbers(before).flatten(1, 2) @ leave, chunks, toeplitz)
    y = _Transpose.apply(y.flatten(1)).unflatten(0, (batch, count * chunk))[:, :length]
    if num_valid is None:
        num_valid = torch.full((batch,), length, device=u.device)
    return y, _state_after(u, system, before, last, num_valid.to(u.device).long())


def _state_after(u: Tensor, system: _System, before: Tensor, last: Tensor, num_valid: Tensor) -> Tensor:
    """State [B,D,M] after `num_valid` tokens of a row, from those before each chunk [D,B,Q,M] and the last [D,B,M]."""
    powers, _, enter, _ = system
    chunk = powers.shape[1] - 1
    rows = torch.arange(u.shape[0], device=u.device)
    rest = num_valid % chunk
    # The tokens since the last border, at the end of a window of L.
    offset = torch.arange(-chunk, 0, device=u.device)
    window = u[rows[:, None], (num_valid[:, None] + offset).clamp_min(0)]
    window = torch.where((offset >= -rest[:, None]).unsqueeze(-1), window, 0)
    increment = _from_numbers(window.permute(2, 0, 1) @ enter, powers)  # [D,B,M]
    index, count = num_valid // chunk, before.shape[2]
    border = torch.where((index == count).unsqueeze(-1), last, before[:, rows, index.clamp_max(count - 1)])
    return torch.addcmul(increment, powers[:, rest], border).transpose(0, 1)


def _documents(
    u: Tensor, system: _System, state: Tensor | None, num_valid: Tensor | None, segment_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Packed rows: each document becomes a row, together with those whose length has the same power of two."""
    batch, length, channels = u.shape
    device = u.device
    full = system.powers.shape[1] - 1
    valid = torch.full((batch,), length, device=device) if num_valid is None else num_valid.to(device)
    starts = ~document_keep(segment_ids, torch.bool)
    starts[:, 0] = True
    document = starts.flatten().cumsum(0) - 1  # of each token, numbered over the whole batch
    first = starts.flatten().nonzero().squeeze(1)
    used = (torch.arange(length, device=device) < valid[:, None]).flatten()
    lengths = torch.zeros_like(first).index_add(0, document, used.long())
    row_documents = document.view(batch, length)
    initial = None
    if state is not None:
        initial = state.new_zeros(len(first), *state.shape[1:]).index_copy(0, row_documents[:, 0], state)

    places, outputs, members, finals = [], [], [], []
    exponents = lengths.clamp_min(1).double().log2().ceil().long()
    for exponent in exponents.unique().tolist():
        chosen = (exponents == exponent).nonzero().squeeze(1)
        size = 1 << exponent
        steps = torch.arange(size, device=device)
        inside = steps < lengths[chosen, None]
        index = (first[chosen, None] + steps).clamp_max(batch * length - 1)
        rows = torch.where(inside.unsqueeze(-1), u.flatten(0, 1)[index], 0)
        start_state = None if initial is None else initial[chosen]
        y, final = _rows(rows, system.shorter(min(size, full)), start_state, lengths[chosen])
        places.append(index[inside])
        outputs.append(y[inside])
        members.append(chosen)
        finals.append(final)
    y = u.new_zeros(batch * length, channels).index_copy(0, torch.cat(places), torch.cat(outputs)).view(u.shape)
    # The document that holds the last valid token of each row; a row without any keeps its initial state.
    last = row_documents.gather(1, (valid - 1).clamp_min(0)[:, None].long()).squeeze(1)
    final = torch.cat(finals)[torch.cat(members).argsort()[last]]
    return y, final


diagonal_ssm = Recurrence(DiagonalSsm, "diagonal_ssm")
