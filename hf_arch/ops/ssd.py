"""State space duality of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): a matrix state with one decay per head and step.

`S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T`, `y_t = S_t C_t + D x_t`, with S [P,N] per head in fp32.

B and C are shared by the heads of a group: head h reads group h // (H/G). So their scores C B^T are taken once per
group, and products with the state put the heads of a group side by side, `[L,N] @ [N,R*P]`.
Legend: B batch, T time, H heads, P head dim, N state, G groups, R heads of a group, L chunk, M chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .backend import needs_gradients, refuses_gated_gradients
from .chunk_states import chunk_states
from .decay import decay_products
from .native_ssd import KERNELS, NativeSsd
from .recurrence import ChunkedCall, Recurrence

CHUNK = 64


@dataclass(eq=False, repr=False)
class Ssd(ChunkedCall[Tensor]):
    """S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T, y_t = S_t C_t + D x_t: one decay per head and step (Mamba-2).

    Head h reads group h // (H/G) of B and C; G must divide H.

    The output [B, T, H, P] has x's dtype, the state is fp32 (fp64 for fp64 inputs). Chunks have 64 tokens.
    """

    x: Annotated[Tensor, "B T H P", "inputs"]
    dt: Annotated[Tensor, "B T H", "step sizes >= 0, fp32; 0 makes a token a no-op (padding)"]
    A: Annotated[Tensor, "H", "negative, fp32"]
    B: Annotated[Tensor, "B T G N", "input weights of each token"]
    C: Annotated[Tensor, "B T G N", "output weights of each token"]
    D: Annotated[
        Tensor | None, "H | H P", "skip weights: one for each head, or one for each of the P channels of a head"
    ] = None

    states = ("B H P N",)
    output = "x"

    def _check(self) -> dict[str, int]:
        sizes = super()._check()
        heads, groups = sizes["H"], sizes["G"]
        if heads % groups:
            raise ValueError(f"groups: {groups} is not allowed; it must divide the {heads} heads")
        return sizes

    def default_chunk_size(self) -> int:
        return CHUNK

    def naive(self) -> tuple[Tensor, Tensor]:
        def advance(state: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
            decay = torch.exp(dt * self.A)
            inflow = (dt.unsqueeze(-1) * x).unsqueeze(-1) * B.unsqueeze(-2)
            state = decay[..., None, None] * state + inflow
            y = (state * C.unsqueeze(-2)).sum(-1)
            return y if self.D is None else y + _per_head(self.D) * x, state

        return self.each_token(advance, self.x, self.dt, *self.per_head())

    def step(self) -> tuple[Tensor, Tensor]:
        x, dt, A, B, C = self.in_state_dtype()
        return self.with_skip(x, *_step(x, dt, A, B, C, self.state))

    def chunk(self) -> tuple[Tensor, Any]:
        x, dt, A, B, C = self.in_state_dtype()
        if self.is_native():
            D = None if self.D is None else self.D.to(self.dtype)
            return NativeSsd.apply(x, dt, A, B, C, D, self.keep(), self.state, self.output_final_state)
        return self.with_skip(x, *_chunks(x, dt, A, B, C, self.state, self.keep(), self.chunk_length()))

    def is_native(self) -> bool:
        """Whether the chunk form is the C kernel."""
        given = (self.x, self.dt, self.A, self.B, self.C, self.D, self.state)
        return self.dtype == torch.float32 and KERNELS.for_tensors(*given) is not None

    def kernel(self) -> tuple[Tensor, Any]:
        """Queries C, keys B, values dt x, a scalar log decay dt A and a state [B, H, V, K]."""
        x, dt, A, B, C = self.in_state_dtype()
        B, C = (each.to(self.x.dtype) for each in self.per_head())
        arrays = {"q": C, "k": B, "v": (dt.unsqueeze(-1) * self.x).to(self.x.dtype), "g": dt * A}
        kernel = "simple_gla.chunk_simple_gla"
        if refuses_gated_gradients() and needs_gradients(*arrays.values(), self.state):
            kernel, arrays["g"] = "gla.chunk_gla", arrays["g"].unsqueeze(-1).expand_as(B).contiguous()
        return self.with_skip(x, *self.on_fla(kernel, arrays, scale=1.0, state_v_first=True))

    def in_state_dtype(self) -> tuple[Tensor, ...]:
        """x, dt, A, B and C."""
        return tuple(x.to(self.dtype) for x in (self.x, self.dt, self.A, self.B, self.C))

    def per_head(self) -> tuple[Tensor, ...]:
        """B and C of each head, [B,T,H,N]."""
        ratio = self.sizes["H"] // self.sizes["G"]
        return tuple(x.repeat_interleave(ratio, 2) for x in (self.B, self.C))

    def with_skip(self, x: Tensor, y: Tensor, final: Any) -> tuple[Tensor, Any]:
        """y + D x, x in the dtype of states."""
        if self.D is None:
            return y, final
        return torch.addcmul(y.to(self.dtype), x, _per_head(self.D.to(self.dtype))), final


def _per_head(D: Tensor) -> Tensor:
    """[H] or [H,P] as something to multiply [..,H,P] with."""
    return D.unsqueeze(-1) if D.dim() == 1 else D


def _step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token: (y [B,1,H,P], next state [B,H,P,N])."""
    batch, _, heads, head_dim = x.shape
    groups, states = B.shape[2:]
    inflow = (dt.unsqueeze(-1) * x).view(batch, groups, -1, 1) * B.view(batch, groups, 1, states)
    new = inflow.view(batch, heads, head_dim, states)
    if state is not None:
        new.addcmul_(state, torch.exp(dt * A).view(batch, heads, 1, 1))
    y = torch.matmul(new.view(batch, groups, -1, states), C.view(batch, groups, states, 1))
    return y.view(x.shape), new


def _chunks(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, keep: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """The whole row: (y [B,T,H,P], final state [B,H,P,N]); all in fp32."""
    batch, length, heads, head_dim = x.shape
    groups, states = B.shape[2:]
    ratio = heads // groups

    def cut(tensor: Tensor, value: float = 0.0) -> Tensor:
        """[B,T,...] to [B,M,L,...]; the end is filled up with no-ops."""
        missing = -length % chunk
        if missing:
            tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, missing), value=value)
        return tensor.unflatten(1, (-1, chunk))

    decay = torch.exp(cut(dt) * A)
    if keep is not None:
        decay = decay * cut(keep, 1.0).unsqueeze(-1)
    between, prefix, suffix, total = decay_products(decay.transpose(2, 3))  # [B,M,H,L,L], [B,M,H,L] twice, [B,M,H]

    B_chunks, C_chunks = cut(B).transpose(2, 3), cut(C).transpose(2, 3)  # [B,M,G,L,N]
    inflow = cut(dt.unsqueeze(-1) * x)  # [B,M,L,H,P]
    scores = (C_chunks @ B_chunks.mT).unsqueeze(3) * between.unflatten(2, (groups, ratio))
    within = scores.flatten(2, 3) @ inflow.transpose(2, 3)  # [B,M,H,L,P]

    def side_by_side(tensor: Tensor) -> Tensor:
        """[B,M,L,H,P] to [B,M,G,L,R*P]."""
        return tensor.unflatten(3, (groups, ratio)).flatten(4).transpose(2, 3)

    increments = B_chunks.mT @ side_by_side(inflow * suffix.mT.unsqueeze(-1))  # [B,M,G,N,R*P]
    # Decays of the state in its own layout [B,G,N,R*P].
    totals = total.unflatten(2, (groups, 1, ratio, 1)).expand(-1, -1, -1, -1, -1, head_dim).flatten(4)
    if state is None:
        state = x.new_zeros(batch, groups, states, ratio * head_dim)
    else:
        state = state.view(batch, groups, ratio * head_dim, states).mT
    before, state = chunk_states(increments, totals, state, 1)
    carried = (C_chunks @ before).transpose(2, 3).reshape(inflow.shape)  # [B,M,L,H,P]
    y = torch.addcmul(within.transpose(2, 3), carried, prefix.mT.unsqueeze(-1))
    final = state.mT.reshape(batch, heads, head_dim, states)
    return y.flatten(1, 2)[:, :length], final


ssd = Recurrence(Ssd, "ssd")
