r"""The chunk form of linear attention with one decay per key channel.

In a chunk that starts from S, with b the cumulated log decays and D = exp(b_C) those of the whole chunk,

    o = P v + Q S          P_ij = sum_c scale q_ic k_jc exp(b_ic - b_jc) for j < i,  P_ii = scale sum_c u_c q_ic k_ic
    S' = D S + K^T v       Q_i = scale q_i exp(b_i)        K_j = k_j exp(b_C - b_j)

where u, the bonus, is 1 if there is none; with one, readers come before their step's decay: b_{i-1} instead of b_i.

Scores need $\sum_c q_{ic} k_{jc} \prod_{j<s\le i} d_{sc}$: the product of decays is inside the sum over channels, so no
single matrix of decays exists. It is split by halving (see `decay.py`): with blocks of m steps, q carries the product
from its block's first step and k the product up to its block's last, so that each pair of neighbouring blocks costs one
matrix product; then both factors are extended to blocks of 2m by multiplying halves with a block's total decay. After
log2(C) levels the same factors are those that read from, and write into, the state between chunks. Only products of
numbers in [0, 1] are formed: no decay is too strong, and a decay of 0 resets exactly.

Backwards,

    dL/dS = D dL/dS' + Q^T dL/do        dL/dv = P^T dL/do + K dL/dS'        dL/dP = dL/do v^T
    dL/dQ = dL/do S^T                   dL/dK = v dL/dS'^T

and the halving in reverse makes dL/dq and dL/dk of the last three. The gradient of the log decays needs no products at
all: q_i always comes with exp(b_i) and k_j with exp(-b_j), so dL/db = q dL/dq - k dL/dk, and dL/dg is its reverse
cumulated sum plus what the state at the end of the chunk passes on, sum_v S' dL/dS' (GLA, arXiv:2312.06635).

Legend: N chunks, B batch, H heads, C chunk (a power of two), K key dim, V value dim, M = N*B*H.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from .chunks import empty_chunks, empty_in_time_order, load_keep, load_rows, row_groups, store_rows
from .custom_op import as_custom_op, manual_backward
from .decay import Level, factorise, factorise_backward, suffix_sums
from .native import Kernels, Pointer, Struct, contiguous, fields, must_have_memory

KERNELS = Kernels("vector_decay.c")
GROUP_VALUES = 2**19  # that a thread takes at once: two megabytes, near the best of the 0.4 to 6 tried
NATIVE_STATE = 256 * 512


class _VectorDecay(torch.autograd.Function):
    """Takes the batch in groups of rows, for the cache's sake, and keeps the factors of every level for backward.

    Layout, `keep`, `state` and results as `chunks.py` says: q, k, g (a log decay) [N, B, H, C, K], v [N, B, H, C, V],
    bonus [H, K] in the dtype of the state, or None. `scale` is that of the queries.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        g: Tensor,
        keep: Tensor | None,
        v: Tensor,
        bonus: Tensor | None,
        state: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        o = empty_in_time_order(v)
        levels: list[Level] | None = [] if any(ctx.needs_input_grad) else None
        final, saved = [], []
        ctx.groups = row_groups(v, GROUP_VALUES)
        for rows in ctx.groups:
            query, key, value, decay = (load_rows(x, rows, state.dtype) for x in (q, k, v, g))
            own = query * key if bonus is None else query * key * _per_chunk(bonus, len(key))
            reset = load_keep(keep, rows, q)
            decay = decay.exp_() if reset is None else decay.exp_().mul_(reset)
            query = _read(query, decay, reset, bonus, scale)
            scores, total = factorise(query, key, decay, levels)
            scores.diagonal(dim1=-2, dim2=-1).copy_(own.sum(-1).mul_(scale))

            states = state.new_empty(len(q) + 1, *state[rows].shape)
            states[0] = state[rows]
            torch.bmm(key.mT, value, out=states[1:].flatten(0, 2))
            total = total.view(*states[1:].shape[:-1], 1)
            for n, total_n in enumerate(total.unbind(0)):
                states[n + 1].addcmul_(total_n, states[n])
            o_rows = torch.bmm(query, states[:-1].flatten(0, 2)).baddbmm_(scores, value)
            store_rows(o, rows, o_rows)
            final.append(states[-1])
            if levels is not None:
                saved += [query, key, decay, scores, total, states, *(x for level in levels for x in level)]
                levels.clear()
        ctx.save_for_backward(q, k, v, keep, bonus, *saved)
        ctx.scale = scale
        return o, torch.cat(final)

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, keep, bonus, *saved = ctx.saved_tensors
        grad_inputs = [empty_in_time_order(x) for x in (q, k, v)] + [empty_in_time_order(q, saved[2].dtype)]
        grad_bonus = None if bonus is None else torch.zeros_like(bonus)
        grad_initial = []
        size = len(saved) // len(ctx.groups)
        for index, rows in enumerate(ctx.groups):
            query, key, decay, scores, total, states, *flat = saved[index * size : (index + 1) * size]
            levels = [Level(*flat[at : at + 4]) for at in range(0, len(flat), 4)]
            grad_o, value = (load_rows(x, rows, states.dtype) for x in (grads[0], v))

            # dL/dS_n = D_n dL/dS_{n+1} + Q_n^T dL/do_n
            grad_states = torch.empty_like(states)
            grad_states[-1] = grads[1][rows]
            torch.bmm(query.mT, grad_o, out=grad_states[:-1].flatten(0, 2))
            for n in range(len(total) - 1, -1, -1):
                grad_states[n].addcmul_(total[n], grad_states[n + 1])
            before, grad_after = states[:-1].flatten(0, 2), grad_states[1:].flatten(0, 2)

            # dL/dv = K dL/dS' + P^T dL/do
            grad_v = torch.bmm(key, grad_after).baddbmm_(scores.mT, grad_o)
            # dL/dP = dL/do v^T, dL/dQ = dL/do S^T, dL/dK = v dL/dS'^T; then from factors of the chunk to those of steps
            grad_scores = torch.bmm(grad_o, value.mT)
            grad_query, grad_k = torch.bmm(grad_o, before.mT), torch.bmm(value, grad_after.mT)
            factorise_backward(levels, grad_scores, grad_query, grad_k)
            reset = load_keep(keep, rows, q)
            # the factor of a step is scale q exp(g), or scale q before its decay
            grad_q = _read(grad_query, decay, reset, bonus, ctx.scale)

            # dL/dg_t = sum_{s >= t} (q dL/dq - k dL/dk)_s + sum_v S' dL/dS'; with a bonus q_t has b_{t-1}: s > t.
            # The diagonal holds no decay: it stays out of it, where it would cancel up to rounding only.
            q_rows, k_rows = (load_rows(x, rows, states.dtype) for x in (q, k))
            read, written = q_rows * grad_q, k_rows * grad_k
            grad_g = suffix_sums(read.sub_(written)) if bonus is None else suffix_sums(read, 1) - suffix_sums(written)
            grad_g += (states[1:] * grad_states[1:]).sum(-1).view(-1, 1, q.shape[-1])
            if reset is not None:
                grad_g *= reset

            # P_ii = scale sum_c u_c q_ic k_ic: dL/dq += scale dL/dP_ii u k, dL/dk likewise, dL/du = scale dL/dP_ii q k
            grad_own = grad_scores.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) * ctx.scale
            if bonus is not None and grad_bonus is not None:
                grad_bonus += (grad_own * q_rows * k_rows).unflatten(0, (-1, len(bonus))).sum((0, 2))
                grad_own = grad_own * _per_chunk(bonus, len(q_rows))
            grad_q.addcmul_(grad_own, k_rows)
            grad_k.addcmul_(grad_own, q_rows)
            for grad_input, grad in zip(grad_inputs, (grad_q, grad_k, grad_v, grad_g), strict=True):
                store_rows(grad_input, rows, grad)
            grad_initial.append(grad_states[0])
        grad_q, grad_k, grad_v, grad_g = grad_inputs
        return grad_q, grad_k, grad_g, None, grad_v, grad_bonus, torch.cat(grad_initial), None


def _read(query: Tensor, decay: Tensor, reset: Tensor | None, bonus: Tensor | None, scale: float) -> Tensor:
    """scale * query times what it finds of the state before the step: with a bonus that is read before its decay."""
    left = decay if bonus is None else reset
    return query.mul_(scale) if left is None else torch.addcmul(query.new_zeros(()), query, left, value=scale)


def _per_chunk(bonus: Tensor, chunks: int) -> Tensor:
    """[H, K] as [M, 1, K]."""
    return bonus.repeat(chunks // len(bonus), 1).unsqueeze(1)


chunk_vector_decay = as_custom_op(_VectorDecay, ("v", "state"), empty_chunks)


def has_kernel(kernels: Kernels, state: tuple[int, int], *tensors: Tensor | None) -> bool:
    """Whether that C kernel is there for these tensors, and known to be faster for heads whose state has these sides:
    twice as fast up to the largest that was tried."""
    return math.prod(state) <= NATIVE_STATE and kernels.for_tensors(*tensors) is not None


class _Attention(Struct):
    """What both kernels read, as `ops/kernels/vector_decay.c` has it."""

    _fields_ = fields("batch length heads keys values threads turned", "q k g v bonus keep")


class Gradients(Struct):
    _fields_ = fields("", "state q k g v bonus")


class NativeVectorDecay(torch.autograd.Function):
    """The same by a C kernel that walks through time, four steps in a pass over the state, and in its backward pass
    once forwards and twice backwards. It keeps its inputs alone.

    q (scaled), k, g [B, T, H, K], v [B, T, H, V], bonus [H, K] or None, keep [B, T] or None, state [B, H, K, V], all
    fp32 on a CPU, to o [B, T, H, V] and the final state [B, H, K, V].
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        g: Tensor,
        keep: Tensor | None,
        v: Tensor,
        bonus: Tensor | None,
        state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        kernels = KERNELS.loaded()
        initial, final = state.contiguous(), state.new_empty(state.shape)
        o = torch.empty(v.shape, dtype=v.dtype)
        attention = native_attention(q, k, g, v, bonus, keep)
        results = Pointer(final), Pointer(o)
        must_have_memory(kernels.vector_decay(ctypes.byref(attention), Pointer(initial), *results))
        ctx.save_for_backward(q, k, g, keep, v, bonus, state)
        return o, final

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, g, keep, v, bonus, state = ctx.saved_tensors
        kernels = KERNELS.loaded()
        initial, grad_o, grad_final = contiguous(state, *grads)
        grad_state, grad_q, grad_k, grad_g, grad_v = (torch.empty(x.shape, dtype=x.dtype) for x in (state, q, q, q, v))
        grad_bonus = None if bonus is None else q.new_empty(len(q), *bonus.shape)
        attention = native_attention(q, k, g, v, bonus, keep)
        to = Gradients(grad_state, grad_q, grad_k, grad_g, grad_v, grad_bonus)
        given = Pointer(initial), Pointer(grad_final), Pointer(grad_o)
        must_have_memory(kernels.vector_decay_backward(ctypes.byref(attention), *given, ctypes.byref(to)))
        of_bonus = None if grad_bonus is None else grad_bonus.sum(0)
        return grad_q, grad_k, grad_g, None, grad_v, of_bonus, grad_state


def native_attention(
    q: Tensor, k: Tensor, g: Tensor, v: Tensor, *others: Tensor | None, turned: bool = False
) -> _Attention:
    """`turned`: states are [B, H, V, K]."""
    threads = torch.get_num_threads()
    return _Attention(*q.shape, v.shape[-1], threads, int(turned), *contiguous(q, k, g, v, *others))
