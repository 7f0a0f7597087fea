"""Gated linear attention: a matrix state that decays and takes in outer products (GLA, RetNet, HGRN2, RWKV6, SSD).

    S_t = diag(exp g_t) S_{t-1} + k_t v_t^T          o_t = (scale q_t)^T S_t
    with a bonus u (RWKV6):                          o_t = (scale q_t)^T (S_{t-1} + diag(u) k_t v_t^T)

Papers: linear attention (2006.16236), RetNet (2307.08621), GLA (2312.06635), RWKV6 (2404.05892), all on arXiv.
Legend: B batch, T time, H heads, K key dim, V value dim, N chunks, C chunk. States are fp32, outputs have v's dtype.

The three forms are `naive_linear_attention` (the loop, for reading and for tests), `chunk_linear_attention` (training
and prefill) and `step_linear_attention` (one token); `linear_attention` picks by T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import covers_linear_attention, fla_linear_attention, use_fla
from .chunk_states import chunk_states
from .decay import decay_products
from .segments import chunk_length, chunk_view, from_chunks, segment_keep, state_dtype, to_chunks, without_autocast
from .vector_decay import chunk_vector_decay

SCALAR_CHUNK = 64
VECTOR_CHUNK = 32


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    bonus: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gated linear attention in the form that suits T.

    A token with k = v = 0 and g = 0 leaves the state alone wherever it stands: padding is passed so. (A constant
    decay [H] acts at every token; write it out as [B, T, H] to have padding after the first valid token.)

    Args:
        q, k: [B, T, H, K], any floating dtype.
        v: [B, T, H, V].
        g: log decay <= 0. None: no decay; [H]: constant per head; [B, T, H]: scalar per step; [B, T, H, K]: vector.
        bonus: [H, K]; if given, the current token is read with this weight and the state before its decay.
        scale: of the queries; K^-0.5 if None.
        initial_state: [B, H, K, V]; belongs to the first document of each row.
        output_final_state: whether to return the state after the last token.
        segment_ids: [B, T] integers; the state is reset where neighbours differ.
        chunk_size: a power of two; default 64 for scalar and 32 for vector decays.

    Returns:
        o [B, T, H, V] in v's dtype, and the state [B, H, K, V] in fp32 (fp64 for fp64 inputs) or None.

    Raises:
        ValueError: for a `g` of another rank or a `chunk_size` that is no power of two.
    """
    if g is not None and g.dim() not in (1, 3, 4):
        raise ValueError(f"g: shape {tuple(g.shape)} is not allowed; it must be [H], [B, T, H] or [B, T, H, K]")
    if q.shape[1] == 1:
        # A single token is a continuation of its row: there is no earlier token to differ from.
        o, state = step_linear_attention(q, k, v, g, bonus=bonus, scale=scale, state=initial_state)
        return o, state if output_final_state else None
    if use_fla(q) and covers_linear_attention(g, bonus):
        return fla_linear_attention(
            q,
            k,
            v,
            g,
            bonus=bonus,
            scale=scale,
            initial_state=initial_state,
            output_final_state=output_final_state,
            segment_ids=segment_ids,
        )
    return chunk_linear_attention(
        q,
        k,
        v,
        g,
        bonus=bonus,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        segment_ids=segment_ids,
        chunk_size=chunk_size,
    )


def naive_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    bonus: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence as written in the papers, one token after another; arguments as in `linear_attention`."""
    batch, length, heads, key_dim = q.shape
    dtype = state_dtype(q, k, v, g, initial_state)
    scale = key_dim**-0.5 if scale is None else scale
    g = _per_step(g, q)
    state = q.new_zeros(batch, heads, key_dim, v.shape[-1], dtype=dtype) if initial_state is None else initial_state
    state = state.to(dtype)
    keep = torch.ones_like(q[..., 0, 0], dtype=dtype) if segment_ids is None else segment_keep(segment_ids, dtype)
    decay = (g if g.dim() == 4 else g.unsqueeze(-1)).to(dtype).exp().expand(batch, length, heads, -1)
    outputs = []
    with without_autocast(q):
        steps = (x.unbind(1) for x in (q.to(dtype) * scale, k.to(dtype), v.to(dtype), decay, keep))
        for q_t, k_t, v_t, decay_t, keep_t in zip(*steps, strict=True):
            update = k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
            before = state if segment_ids is None else keep_t[:, None, None, None] * state
            state = decay_t.unsqueeze(-1) * before + update
            read = state if bonus is None else before + bonus.to(dtype).unsqueeze(-1) * update
            outputs.append((q_t.unsqueeze(-2) @ read).squeeze(-2))
    return torch.stack(outputs, 1).to(v.dtype), state if output_final_state else None


def step_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    bonus: Tensor | None = None,
    scale: float | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token: arguments as in `linear_attention` with T = 1, and the state before it. Returns o and the state."""
    dtype = state_dtype(q, k, v, g, state)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = q[:, 0].to(dtype) * scale, k[:, 0].to(dtype), v[:, 0].to(dtype)
    with without_autocast(q):
        new_state = key.unsqueeze(-1) * value.unsqueeze(-2)
        if state is not None and g is None:
            new_state.add_(state)
        elif state is not None and g is not None:
            decay = (g if g.dim() == 1 else g[:, 0]).to(dtype).exp()
            new_state.addcmul_(decay.unsqueeze(-1) if g.dim() == 4 else decay[..., None, None], state.to(dtype))
        if bonus is None:
            o = (query.unsqueeze(-2) @ new_state).squeeze(-2)
        else:
            o = (query * bonus.to(dtype) * key).sum(-1, keepdim=True) * value
            o = o if state is None else o + (query.unsqueeze(-2) @ state.to(dtype)).squeeze(-2)
    return o.unsqueeze(1).to(v.dtype), new_state


def chunk_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    bonus: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Chunks of matrix products, a state handed from each to the next; arguments as in `linear_attention`.

    Outputs before a changed token stay bit-equal, and no decay is too strong.
    """
    length = q.shape[1]
    dtype = state_dtype(q, k, v, g, initial_state)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    g = _per_step(g, q)
    vector = bonus is not None or g.dim() == 4
    chunk = chunk_length(length, chunk_size or (VECTOR_CHUNK if vector else SCALAR_CHUNK))
    state = None if initial_state is None else initial_state.to(dtype)
    keep = None
    if segment_ids is not None:
        keep = to_chunks(segment_keep(segment_ids, dtype).unsqueeze(-1), chunk, dtype, pad_value=1.0)
    with without_autocast(q):
        if vector:
            g = (g if g.dim() == 4 else g.unsqueeze(-1)).expand_as(q)
            arrays = (chunk_view(x, chunk) for x in (q, k, v, g))
            o, state = chunk_vector_decay(*arrays, scale=scale, keep=keep, bonus=bonus, state=state, dtype=dtype)
        else:
            query, key, value, decay = (to_chunks(x, chunk, dtype) for x in (q, k, v, g))
            o, state = _chunk_scalar_decay(query * scale, key, value, decay, keep=keep, state=state)
        return from_chunks(o, length, v.dtype), state if output_final_state else None


def _chunk_scalar_decay(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, keep: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One decay a step: scores are q k^T times a matrix of decays. Arrays [N, B, H, C, .], g [N, B|1, H|1, C]."""
    decay = g.exp() if keep is None else g.exp() * keep
    between, prefix, suffix, total = decay_products(decay)
    scores = (q @ k.transpose(-1, -2)) * between
    increments = (k * suffix.unsqueeze(-1)).transpose(-1, -2) @ v
    state = torch.zeros_like(increments[0]) if state is None else state
    states, state = chunk_states(increments, total[..., None, None], state, dim=0)
    return scores @ v + (q * prefix.unsqueeze(-1)) @ states, state


def _per_step(g: Tensor | None, q: Tensor) -> Tensor:
    """Log decays with a time axis: [1, T, H] for constant ones, so that nothing is computed once per row."""
    if g is None:
        return q.new_zeros(1, q.shape[1], 1, dtype=torch.float32)
    return g.expand(1, q.shape[1], -1) if g.dim() == 1 else g
