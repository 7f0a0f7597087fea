"""Diagonal state space S4D (Gu et al. 2022, arXiv 2206.11893): a linear system per channel, the same at every step.

    s_t = a s_{t-1} + b u_t      y_t = 2 Re(C . s_t) + D u_t      a = exp(dt A), b = (a - 1) / A * B (zero-order hold)

with M complex numbers a channel that stand for M conjugate pairs, or N real ones (then without the factor 2).

The row is cut in chunks of L steps. Inside a chunk the output is a product with the Toeplitz matrix of the kernel
K_l = 2 Re(sum C b a^l); the state between chunks enters by powers of a: `y = [u, s] @ [Toeplitz; C a^i]`. Measured
on a CPU, forward and backward, this equals a convolution by FFT in speed at T = 1024 and takes half its time at 4096;
besides it is bit-causal and continues from any state.

Nothing can tell such a system to stand still, so padding has to come first, as zeros with no initial state, or last,
with `num_valid`. Documents of a packed row are run as rows of their own, in groups of similar length.
Legend: B batch, T time, D channels, M complex states, N real states, L chunk, Q chunks, S numbers of a state (2M or N).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .chunk_states import chunk_states
from .segments import chunk_length, segment_keep, state_dtype, without_autocast

CHUNK = 32


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


def naive_diagonal_ssm(
    u: Tensor,
    log_dt: Tensor,
    A_re: Tensor,
    A_im: Tensor | None,
    C: Tensor,
    B: Tensor | None = None,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    segment_ids: Tensor | None = None,
    output_final_state: bool = False,
    num_valid: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Reference: the recurrence, one token after the other. Same arguments as `diagonal_ssm`."""
    dtype = state_dtype(u, A_re)
    _, decay, inflow = discretise(log_dt, A_re, A_im, B)
    readout = _readout(C, A_im)
    state = decay.new_zeros(u.shape[0], *decay.shape)
    if initial_state is not None:
        state = initial_state if A_im is None else torch.view_as_complex(initial_state.contiguous())
    final = state
    keep = u.new_ones(u.shape[:2], dtype=dtype) if segment_ids is None else segment_keep(segment_ids, dtype)
    outputs = []
    for t, (u_t, keep_t) in enumerate(zip(u.to(dtype).unbind(1), keep.unbind(1), strict=True)):
        state = decay * (keep_t[:, None, None] * state) + inflow * u_t.unsqueeze(-1)
        final = state if num_valid is None else torch.where((t < num_valid)[:, None, None], state, final)
        y_t = (readout * state).sum(-1)
        y_t = y_t.real if y_t.is_complex() else y_t
        outputs.append(y_t if D is None else y_t + D * u_t)
    final = torch.view_as_real(final) if final.is_complex() else final
    return torch.stack(outputs, 1).to(u.dtype), final if output_final_state else None


def diagonal_ssm(
    u: Tensor,
    log_dt: Tensor,
    A_re: Tensor,
    A_im: Tensor | None,
    C: Tensor,
    B: Tensor | None = None,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    segment_ids: Tensor | None = None,
    output_final_state: bool = False,
    num_valid: Tensor | None = None,
    chunk_size: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """S4D over a row of tokens: chunks of matrix products, or one step where T = 1.

    Args:
        u: inputs [B,T,D], T >= 1. Padding enters as zeros: after the tokens, or before them without `initial_state`.
        log_dt: logarithm of the step size of each channel, [D].
        A_re: real part of the diagonal, negative, [D,M]; [D,N] for a real system.
        A_im: its imaginary part [D,M], or None for a real system.
        C: readout [D,M,2] as (real, imaginary); [D,N] for a real system.
        B: input weights in the same layout, or None for ones.
        D: skip weights [D] or None.
        initial_state: [B,D,M,2] ([B,D,N] for a real system), of the row's first document; zeros where None.
        segment_ids: [B,T] integers, one per document of a packed row; the state starts anew where they change.
        output_final_state: also return the state after the last valid token.
        num_valid: [B] integers in 0..T: a row's valid tokens are its first ones.
        chunk_size: a power of two.

    Returns:
        (y [B,T,D] in the dtype of u, state [B,D,M,2] or [B,D,N] in fp32, or None); y is undefined at padding.

    Raises:
        ValueError: if `chunk_size` is not a power of two.
    """
    dtype = state_dtype(u, A_re)
    inputs, log_dt, A_re, C = u.to(dtype), log_dt.to(dtype), A_re.to(dtype), C.to(dtype)
    A_im, B = (None if tensor is None else tensor.to(dtype) for tensor in (A_im, B))
    with without_autocast(u):
        exponent, decay, inflow = discretise(log_dt, A_re, A_im, B)
        readout = _readout(C, A_im)
        state = None
        if initial_state is not None:
            state = _from_numbers(initial_state.to(dtype).flatten(2), exponent)
        if u.shape[1] == 1 and num_valid is None:
            y, final = _step(inputs, decay, inflow, readout, state)
        else:
            chunk = chunk_length(u.shape[1], chunk_size)
            system = _System.build(exponent, inflow, readout, chunk)
            if segment_ids is None:
                y, final = _rows(inputs, system, state, num_valid)
            else:
                y, final = _documents(inputs, system, state, num_valid, segment_ids)
        if D is not None:
            y = torch.addcmul(y, inputs, D.to(dtype))
    final = torch.view_as_real(final) if final.is_complex() else final
    return y.to(u.dtype), final if output_final_state else None


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
    before, last = chunk_states(increments, total, state, dim=2)
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
    starts = ~segment_keep(segment_ids, torch.bool)
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
