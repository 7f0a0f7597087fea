"""State space duality of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): a matrix state with one decay per head and step.

`S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T`, `y_t = S_t C_t + D x_t`, with S [P,N] per head in fp32.

B and C are shared by the heads of a group: head h reads group h // (H/G). So their scores C B^T are taken once per
group, and products with the state put the heads of a group side by side, `[L,N] @ [N,R*P]`.
Legend: B batch, T time, H heads, P head dim, N state, G groups, R heads of a group, L chunk, M chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .backend import fla_ssd, use_fla
from .chunk_states import chunk_states
from .decay import decay_products
from .segments import chunk_length, segment_keep, state_dtype, without_autocast

CHUNK = 64


def naive_ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    segment_ids: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Reference: the recurrence, one token after the other. Same arguments as `ssd`."""
    batch, _, heads, head_dim = x.shape
    dtype = state_dtype(x, dt)
    B, C = (tensor.repeat_interleave(heads // tensor.shape[2], dim=2) for tensor in (B, C))
    state = x.new_zeros(batch, heads, head_dim, B.shape[3], dtype=dtype) if initial_state is None else initial_state
    keep = torch.ones_like(dt[..., 0], dtype=dtype) if segment_ids is None else segment_keep(segment_ids, dtype)
    steps = zip(*(tensor.to(dtype).unbind(1) for tensor in (x, dt, B, C, keep)), strict=True)
    outputs = []
    for x_t, dt_t, B_t, C_t, keep_t in steps:
        decay = keep_t[:, None] * torch.exp(dt_t * A)
        inflow = (dt_t.unsqueeze(-1) * x_t).unsqueeze(-1) * B_t.unsqueeze(-2)
        state = decay[..., None, None] * state.to(dtype) + inflow
        y_t = (state * C_t.unsqueeze(-2)).sum(-1)
        outputs.append(y_t if D is None else y_t + _per_head(D) * x_t)
    return torch.stack(outputs, 1).to(x.dtype), state if output_final_state else None


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    segment_ids: Tensor | None = None,
    output_final_state: bool = False,
    chunk_size: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """Mamba-2's recurrence over a row of tokens: chunks of matrix products, or one step where T = 1.

    Args:
        x: inputs [B,T,H,P], T >= 1.
        dt: step sizes >= 0, [B,T,H], fp32; 0 makes a token a no-op (padding).
        A: [H], negative, fp32.
        B, C: input and output weights of each token, [B,T,G,N], G a divisor of H.
        D: skip weights [H] or [H,P], or None.
        initial_state: [B,H,P,N], of the row's first document; zeros where None.
        segment_ids: [B,T] integers, one per document of a packed row; the state starts anew where they change.
        output_final_state: also return the state after the last token.
        chunk_size: a power of two.

    Returns:
        (y [B,T,H,P] in the dtype of x, state [B,H,P,N] in fp32 or None).

    Raises:
        ValueError: if H is not a multiple of G, or `chunk_size` not a power of two.
    """
    if x.shape[2] % B.shape[2]:
        raise ValueError(f"groups: {B.shape[2]} is not allowed; it must divide the {x.shape[2]} heads")
    dtype = state_dtype(x, dt)
    wide_x, dt, A, B, C = (tensor.to(dtype) for tensor in (x, dt, A, B, C))
    state = None if initial_state is None else initial_state.to(dtype)
    final: Tensor | None
    with without_autocast(x):
        if x.shape[1] == 1:
            y, final = _step(wide_x, dt, A, B, C, state)
        elif use_fla(x):
            y, final = fla_ssd(x, dt, A, B, C, initial_state=state, segment_ids=segment_ids, output_final_state=True)
        else:
            keep = None if segment_ids is None else segment_keep(segment_ids, dtype)
            y, final = _chunks(wide_x, dt, A, B, C, state, keep, chunk_length(x.shape[1], chunk_size))
    if D is not None:
        y = torch.addcmul(y.to(dtype), wide_x, _per_head(D.to(dtype)))
    return y.to(x.dtype), final if output_final_state else None


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
    before, state = chunk_states(increments, totals, state, dim=1)
    carried = (C_chunks @ before).transpose(2, 3).reshape(inflow.shape)  # [B,M,L,H,P]
    y = torch.addcmul(within.transpose(2, 3), carried, prefix.mT.unsqueeze(-1))
    final = state.mT.reshape(batch, heads, head_dim, states)
    return y.flatten(1, 2)[:, :length], final
