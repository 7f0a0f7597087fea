"""Attention over a bounded number of slots: a key memory and a value memory, with a softmax over the slots between.

    Kc_t = Kc_{t-1} diag(exp f_t) + k_t s_t^T          p_t = softmax(scale Kc_t^T q_t)
    Vc_t = diag(exp f_t) Vc_{t-1} + s_t v_t^T          o_t = Vc_t^T p_t

Gated slot attention (GSA, arXiv:2409.07146) learns the forget gates f and writes with s = 1 - exp f. Attention with
bounded-memory control (ABC, arXiv:2110.02488) writes each token with a softmax over time, per slot: with
L_t = logsumexp_{i <= t} s_i, that is f_t = L_{t-1} - L_t and the write weight exp(s_t - L_t), both exponents <= 0.

Legend: B batch, T time, H heads, K key dim, V value dim, M slots, N chunks, C chunk. States are fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backend import fla_gated_slot_attention, use_fla
from .graph_node import one_node
from .segments import chunk_length, closed_gradient, from_chunks, segment_keep, state_dtype, to_chunks, without_autocast
from .value_decay import chunk_value_decay
from .vector_decay import chunk_vector_decay

SlotState = tuple[Tensor, Tensor]
# The logsumexp of nothing: finite, so that differences of two of them are 0 rather than NaN.
EMPTY = -1e30


def gated_slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    f: Tensor,
    *,
    scale: float = 1.0,
    initial_state: SlotState | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, SlotState | None]:
    """GSA in the form that suits T.

    A token with k = v = s = 0 and f = 0 leaves the state alone wherever it stands: padding is passed so.

    Args:
        q, k: [B, T, H, K], any floating dtype.
        v: [B, T, H, V].
        s: [B, T, H, M] write weights.
        f: [B, T, H, M] log forget gates <= 0.
        scale: of the queries.
        initial_state: ([B, H, K, M], [B, H, M, V]); belongs to the first document of each row.
        output_final_state: whether to return the state after the last token.
        segment_ids: [B, T] integers; the state is reset where neighbours differ.
        chunk_size: a power of two.

    Returns:
        o [B, T, H, V] in v's dtype, and the state in fp32 (fp64 for fp64 inputs) or None.

    Raises:
        ValueError: for a `chunk_size` that is no power of two.
    """
    options: dict[str, Any] = {"scale": scale, "initial_state": initial_state, "output_final_state": output_final_state}
    if q.shape[1] == 1:
        return naive_gated_slot_attention(q, k, v, s, f, **options)
    if use_fla(q):
        return fla_gated_slot_attention(q, k, v, s, f, segment_ids=segment_ids, **options)
    return chunk_gated_slot_attention(q, k, v, s, f, segment_ids=segment_ids, chunk_size=chunk_size, **options)


def naive_gated_slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    f: Tensor,
    *,
    scale: float = 1.0,
    initial_state: SlotState | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, SlotState | None]:
    """The recurrence as written, one token after another; arguments as in `gated_slot_attention`."""
    dtype = state_dtype(q, k, v, s, f)
    keys, values = _states(initial_state, q, v, s, dtype)
    decay = f.to(dtype).exp()
    if segment_ids is not None:
        decay = decay * segment_keep(segment_ids, dtype)[:, :, None, None]
    outputs = []
    with without_autocast(q):
        steps = (x.to(dtype).unbind(1) for x in (q.to(dtype) * scale, k, v, s, decay))
        for q_t, k_t, v_t, s_t, decay_t in zip(*steps, strict=True):
            keys = torch.addcmul(k_t.unsqueeze(-1) * s_t.unsqueeze(-2), decay_t.unsqueeze(-2), keys)
            values = torch.addcmul(s_t.unsqueeze(-1) * v_t.unsqueeze(-2), decay_t.unsqueeze(-1), values)
            p_t = (q_t.unsqueeze(-2) @ keys).softmax(-1)
            outputs.append((p_t @ values).squeeze(-2))
    return torch.stack(outputs, 1).to(v.dtype), (keys, values) if output_final_state else None


def chunk_gated_slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    f: Tensor,
    *,
    scale: float = 1.0,
    initial_state: SlotState | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, SlotState | None]:
    """Two chunked passes of linear attention, decaying along the slots; arguments as in `gated_slot_attention`.

    Outputs before a changed token stay bit-equal, and no decay is too strong.
    """
    length = q.shape[1]
    dtype = state_dtype(q, k, v, s, f)
    chunk = chunk_length(length, chunk_size)
    keys, values = _states(initial_state, q, v, s, dtype)
    keep = None
    if segment_ids is not None:
        keep = to_chunks(segment_keep(segment_ids, dtype).unsqueeze(-1), chunk, dtype, pad_value=1.0)
    with without_autocast(q):
        query, key, value, write, forget = (to_chunks(x, chunk, dtype) for x in (q, k, v, s, f))
        scores, keys = chunk_value_decay(query * scale, key, write, forget, keep=keep, state=keys)
        arrays = (scores.softmax(-1), write, value, forget)
        o, values = chunk_vector_decay(*arrays, scale=1.0, keep=keep, bonus=None, state=values, dtype=dtype)
        return from_chunks(o, length, v.dtype), (keys, values) if output_final_state else None


def _states(state: SlotState | None, q: Tensor, v: Tensor, s: Tensor, dtype: torch.dtype) -> SlotState:
    if state is not None:
        return state[0].to(dtype), state[1].to(dtype)
    batch, _, heads, slots = s.shape
    keys = q.new_zeros(batch, heads, q.shape[-1], slots, dtype=dtype)
    return keys, q.new_zeros(batch, heads, slots, v.shape[-1], dtype=dtype)


def abc_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    *,
    scale: float | None = None,
    initial_state: tuple[Tensor, Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """ABC: the memory slots are running softmax averages over time of the keys and values.

    A token with s = -inf has no weight: padding is passed so.

    Args:
        q, k: [B, T, H, K], any floating dtype.
        v: [B, T, H, V].
        s: [B, T, H, M] logits of the write weights.
        scale: of the queries; K^-0.5 if None.
        initial_state: (L [B, H, M], [B, H, K, M], [B, H, M, V]) with L the logsumexp of all earlier s.
        output_final_state, segment_ids, chunk_size: as in `gated_slot_attention`.

    Returns:
        o [B, T, H, V] in v's dtype, and the state in fp32 (fp64 for fp64 inputs) or None.
    """
    dtype = state_dtype(q, k, v, s)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = s.to(dtype).clamp(min=EMPTY)
    before = torch.full_like(logits[:, 0], EMPTY) if initial_state is None else initial_state[0].to(dtype)
    start = None if segment_ids is None else (segment_keep(segment_ids) == 0)[:, :, None, None]
    sums = _running_logsumexp(logits, before, start)
    o, state = gated_slot_attention(
        q,
        k,
        v,
        (logits - sums).exp(),
        _previous(sums, before, start) - sums,
        scale=scale,
        initial_state=None if initial_state is None else initial_state[1:],
        output_final_state=output_final_state,
        segment_ids=segment_ids,
        chunk_size=chunk_size,
    )
    return o, None if state is None else (sums[:, -1], *state)


def naive_abc_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    *,
    scale: float | None = None,
    initial_state: tuple[Tensor, Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """The running averages, one token after another; arguments as in `abc_attention`."""
    dtype = state_dtype(q, k, v, s)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    total = torch.full_like(s[:, 0], EMPTY, dtype=dtype) if initial_state is None else initial_state[0].to(dtype)
    keys, values = _states(None if initial_state is None else initial_state[1:], q, v, s, dtype)
    keep = torch.ones_like(s[..., 0, 0], dtype=dtype) if segment_ids is None else segment_keep(segment_ids, dtype)
    outputs = []
    with without_autocast(q):
        steps = (x.to(dtype).unbind(1) for x in (q.to(dtype) * scale, k, v, s.to(dtype).clamp(min=EMPTY), keep))
        for q_t, k_t, v_t, s_t, keep_t in zip(*steps, strict=True):
            total = total.masked_fill(keep_t[:, None, None] == 0, EMPTY)
            new_total = torch.logaddexp(total, s_t)
            old, new = (total - new_total).exp(), (s_t - new_total).exp()
            keys = old.unsqueeze(-2) * keys + k_t.unsqueeze(-1) * new.unsqueeze(-2)
            values = old.unsqueeze(-1) * values + new.unsqueeze(-1) * v_t.unsqueeze(-2)
            p_t = (q_t.unsqueeze(-2) @ keys).softmax(-1)
            outputs.append((p_t @ values).squeeze(-2))
            total = new_total
    return torch.stack(outputs, 1).to(v.dtype), (total, keys, values) if output_final_state else None


class _RunningLogSumExp(torch.autograd.Function):
    """L_t = log(exp L_{t-1} + exp s_t), from `before` = L_0; starts anew where `start` is true.

    s [B, T, H, M], before [B, H, M], start [B, T, 1, 1] or None; returns [B, T, H, M].
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, before: Tensor, start: Tensor | None) -> Tensor:
        totals = [before]
        starts = [None] * s.shape[1] if start is None else start.unbind(1)
        for s_t, start_t in zip(s.unbind(1), starts, strict=True):
            past = totals[-1] if start_t is None else totals[-1].masked_fill(start_t, EMPTY)
            totals.append(torch.logaddexp(past, s_t))
        sums = torch.stack(totals[1:], 1)
        ctx.save_for_backward(s, before, start, sums)
        return sums

    @staticmethod
    @closed_gradient
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        s, before, start, sums = ctx.saved_tensors
        carry = (_previous(sums, before, start) - sums).exp()
        reach = grads[0].clone()  # of every L_t, through all later ones
        later = zip(reach.unbind(1)[-2::-1], reach.unbind(1)[:0:-1], carry.unbind(1)[:0:-1], strict=True)
        for reach_t, reach_next, carry_next in later:
            reach_t.addcmul_(carry_next, reach_next)
        return (s - sums).exp() * reach, carry[:, 0] * reach[:, 0], None


def _previous(sums: Tensor, before: Tensor, start: Tensor | None) -> Tensor:
    """L_{t-1} for every t, that of nothing where a document starts."""
    previous = torch.cat([before.unsqueeze(1), sums[:, :-1]], 1)
    return previous if start is None else previous.masked_fill(start, EMPTY)


def _like_logits(s: Tensor, before: Tensor, start: Tensor | None) -> Tensor:
    return s.new_empty(s.shape)


_running_logsumexp = one_node(_RunningLogSumExp, _like_logits)
