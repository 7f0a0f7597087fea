"""The delta rule: a matrix state that is corrected towards each new value instead of only added to (DeltaNet).

    S' = exp(g_t) S_{t-1}      u_t = beta_t (v_t - S'^T k_t)      S_t = S' + k_t u_t^T      o_t = (scale q_t)^T S_t

Papers: DeltaNet in parallel (2406.06484), Gated DeltaNet (2412.06464), both on arXiv. In a chunk, with L the decays
between positions and p those from the chunk's start, the corrections solve a triangular system (WY form):

    (I + A) u = beta (v - p k S_0)        A_ij = beta_i L_ij k_i.k_j  for j < i

Legend: B batch, T time, H heads, K key dim, V value dim, N chunks, C chunk. States are fp32, outputs have v's dtype.
Keys are expected l2-normalised, and 0 <= beta <= 2 (above 1 the transition has negative eigenvalues).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import fla_delta_rule, fla_dplr_delta_rule, use_fla
from .delta_chunks import chunk_gated_delta
from .dplr_chunks import MAX_DECAY, chunk_dplr
from .segments import chunk_length, chunk_view, from_chunks, segment_keep, state_dtype, to_chunks, without_autocast


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor | None]:
    """The (gated) delta rule in the form that suits T.

    A token with k = v = 0, beta = 0 and g = 0 leaves the state alone wherever it stands: padding is passed so.

    Args:
        q, k: [B, T, H, K], any floating dtype; k l2-normalised.
        v: [B, T, H, V].
        beta: [B, T, H], the strength of the correction, in [0, 2].
        g: [B, T, H] log decay <= 0, or None for no decay.
        scale: of the queries; K^-0.5 if None.
        initial_state: [B, H, K, V]; belongs to the first document of each row.
        output_final_state: whether to return the state after the last token.
        segment_ids: [B, T] integers; the state is reset where neighbours differ.
        chunk_size: a power of two.

    Returns:
        o [B, T, H, V] in v's dtype, and the state [B, H, K, V] in fp32 (fp64 for fp64 inputs) or None.

    Raises:
        ValueError: for a `chunk_size` that is no power of two.
    """
    if q.shape[1] == 1:
        o, state = step_delta_rule(q, k, v, beta, g, scale=scale, state=initial_state)
        return o, state if output_final_state else None
    if use_fla(q):
        return fla_delta_rule(
            q,
            k,
            v,
            beta,
            g,
            scale=scale,
            initial_state=initial_state,
            output_final_state=output_final_state,
            segment_ids=segment_ids,
        )
    return chunk_delta_rule(
        q,
        k,
        v,
        beta,
        g,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        segment_ids=segment_ids,
        chunk_size=chunk_size,
    )


def naive_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as written in the papers, one token after another; arguments as in `delta_rule`."""
    batch, _, heads, key_dim = q.shape
    dtype = state_dtype(q, k, v, beta, g, initial_state)
    scale = key_dim**-0.5 if scale is None else scale
    state = q.new_zeros(batch, heads, key_dim, v.shape[-1], dtype=dtype) if initial_state is None else initial_state
    state = state.to(dtype)
    decay = torch.ones_like(beta, dtype=dtype) if g is None else g.to(dtype).exp()
    if segment_ids is not None:
        decay = decay * segment_keep(segment_ids, dtype).unsqueeze(-1)
    outputs = []
    with without_autocast(q):
        steps = (x.unbind(1) for x in (q.to(dtype) * scale, k.to(dtype), v.to(dtype), beta.to(dtype), decay))
        for q_t, k_t, v_t, beta_t, decay_t in zip(*steps, strict=True):
            state = decay_t[..., None, None] * state
            recalled = (k_t.unsqueeze(-2) @ state).squeeze(-2)
            correction = beta_t.unsqueeze(-1) * (v_t - recalled)
            state = state + k_t.unsqueeze(-1) * correction.unsqueeze(-2)
            outputs.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1).to(v.dtype), state if output_final_state else None


def step_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    *,
    scale: float | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token: arguments as in `delta_rule` with T = 1, and the state before it. Returns o and the state."""
    dtype = state_dtype(q, k, v, beta, g, state)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (x.transpose(1, 2).to(dtype) for x in (q, k, v))  # [B, H, 1, .]
    strength = beta[:, 0, :, None, None].to(dtype)
    with without_autocast(q):
        if state is None:
            new_state = key.mT * (value * strength)
        else:
            state = state.to(dtype)
            decay = None if g is None else g[:, 0, :, None, None].to(dtype).exp()
            recalled = key @ state if decay is None else (key @ state) * decay
            new_state = key.mT * ((value - recalled) * strength)
            new_state = new_state.add_(state) if decay is None else new_state.addcmul_(state, decay)
        o = (query * scale) @ new_state
    return o.transpose(1, 2).to(v.dtype), new_state


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor | None]:
    """Chunks of matrix products and triangular solves, a state handed from each to the next.

    Arguments as in `delta_rule`. Outputs before a changed token stay bit-equal.
    """
    length = q.shape[1]
    dtype = state_dtype(q, k, v, beta, g, initial_state)
    chunk = chunk_length(length, chunk_size)
    keep = None
    if segment_ids is not None:
        keep = to_chunks(segment_keep(segment_ids, dtype).unsqueeze(-1), chunk, dtype, pad_value=1.0)
    with without_autocast(q):
        o, state = chunk_gated_delta(
            *(chunk_view(x, chunk) for x in (q, k, v)),
            *(None if x is None else chunk_view(x.unsqueeze(-1), chunk) for x in (beta, g)),
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            keep=keep,
            state=None if initial_state is None else initial_state.to(dtype),
            dtype=dtype,
        )
        return from_chunks(o, length, v.dtype), state if output_final_state else None


def dplr_delta_rule(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
    chunk_size: int = 32,
    min_log_decay: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The delta rule with a transition of any diagonal plus any rank-one matrix (RWKV7, arXiv:2503.14456).

        S_t = diag(exp w_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T        o_t = (scale r_t)^T S_t

    A token with k = v = a = b = 0 and w = 0 leaves the state alone wherever it stands.

    Args:
        r, k, a, b: [B, T, H, K], any floating dtype. RWKV7 has a = -kappa and b = kappa * (its in-context rate).
        w: [B, T, H, K] log decay <= 0.
        v: [B, T, H, V].
        scale: of r.
        initial_state, output_final_state, segment_ids, chunk_size: as in `delta_rule`.
        min_log_decay: what no w is below, if the caller knows it: mild decays are worked out at half the cost.

    Returns:
        o [B, T, H, V] in v's dtype, and the state [B, H, K, V] in fp32 (fp64 for fp64 inputs) or None.

    Raises:
        ValueError: for a `chunk_size` that is no power of two.
    """
    if r.shape[1] == 1:
        return naive_dplr_delta_rule(
            r, w, k, v, a, b, scale=scale, initial_state=initial_state, output_final_state=output_final_state
        )
    if use_fla(r):
        return fla_dplr_delta_rule(
            r,
            w,
            k,
            v,
            a,
            b,
            scale=scale,
            initial_state=initial_state,
            output_final_state=output_final_state,
            segment_ids=segment_ids,
        )
    return chunk_dplr_delta_rule(
        r,
        w,
        k,
        v,
        a,
        b,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        segment_ids=segment_ids,
        chunk_size=chunk_size,
        min_log_decay=min_log_decay,
    )


def naive_dplr_delta_rule(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as written, one token after another; arguments as in `dplr_delta_rule`."""
    batch, _, heads, key_dim = r.shape
    dtype = state_dtype(r, w, k, v, a, b, initial_state)
    state = r.new_zeros(batch, heads, key_dim, v.shape[-1], dtype=dtype) if initial_state is None else initial_state
    state = state.to(dtype)
    keep = torch.ones_like(r[..., 0, 0], dtype=dtype) if segment_ids is None else segment_keep(segment_ids, dtype)
    outputs = []
    with without_autocast(r):
        read, decay = r.to(dtype) * scale, w.to(dtype).exp()
        steps = (x.to(dtype).unbind(1) for x in (read, decay, k, v, a, b, keep))
        for r_t, decay_t, k_t, v_t, a_t, b_t, keep_t in zip(*steps, strict=True):
            if segment_ids is not None:
                state = keep_t[:, None, None, None] * state
            recalled = a_t.unsqueeze(-2) @ state
            update = b_t.unsqueeze(-1) * recalled + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
            state = torch.addcmul(update, decay_t.unsqueeze(-1), state)
            outputs.append((r_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1).to(v.dtype), state if output_final_state else None


def chunk_dplr_delta_rule(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
    chunk_size: int = 32,
    min_log_decay: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Chunks of matrix products and triangular solves (`dplr_chunks.py`); arguments as in `dplr_delta_rule`.

    Outputs before a changed token stay bit-equal.
    """
    length = r.shape[1]
    dtype = state_dtype(r, w, k, v, a, b, initial_state)
    chunk = chunk_length(length, chunk_size)
    keep = None
    if segment_ids is not None:
        keep = to_chunks(segment_keep(segment_ids, dtype).unsqueeze(-1), chunk, dtype, pad_value=1.0)
    with without_autocast(r):
        o, state = chunk_dplr(
            *(chunk_view(x, chunk) for x in (r, w, k, v, a, b)),
            scale=scale,
            keep=keep,
            state=None if initial_state is None else initial_state.to(dtype),
            dtype=dtype,
            bounded=min_log_decay is not None and -min_log_decay * chunk <= MAX_DECAY,
        )
        return from_chunks(o, length, v.dtype), state if output_final_state else None
