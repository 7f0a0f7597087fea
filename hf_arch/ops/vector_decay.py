r"""The chunk form of linear attention with one decay per key channel.

Scores need $\sum_c q_{ic} k_{jc} \prod_{j<s\le i} d_{sc}$: the product of decays is inside the sum over channels, so no
single matrix of decays exists. It is split by halving (see `decay.py`): with blocks of m steps, q carries the product
from its block's first step and k the product up to its block's last, so that each pair of neighbouring blocks costs one
matrix product; then both factors are extended to blocks of 2m by multiplying halves with a block's total decay. After
log2(C) levels the same factors are those that read from, and write into, the state between chunks. Only products of
numbers in [0, 1] are formed: no decay is too strong, and a decay of 0 resets exactly.

The gradient of the log decays needs no products at all: with b the cumulated log decays, q_i always comes with exp(b_i)
and k_j with exp(-b_j), so dL/db = q dq - k dk, and dL/dg is its reverse cumulated sum plus what the state at the end of
the chunk passes on (GLA, arXiv:2312.06635).

Legend: N chunks, B batch, H heads, C chunk (a power of two), K key dim, V value dim, M = N*B*H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .decay import Level, factorise, factorise_backward, suffix_sums
from .graph_node import one_node
from .segments import closed_gradient

GROUP_VALUES = 2**19  # that a thread takes at once: two megabytes, near the best of the 0.4 to 6 tried


def chunk_vector_decay(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float,
    keep: Tensor | None,
    bonus: Tensor | None,
    state: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Linear attention over chunks.

    Args:
        q, k, g (log decay): [N, B, H, C, K] of any strides and dtype; views of [B, T, H, K] cost no copy.
        v: [N, B, H, C, V], likewise.
        scale: of the queries.
        keep: [N, B, 1, C], 0 where a document starts, or None.
        bonus: [H, K] or None.
        state: [B, H, K, V] in `dtype`, or None.
        dtype: of all arithmetic.

    Returns:
        o [N, B, H, C, V] in v's dtype, a view of a contiguous [B, T, H, V], and the final state [B, H, K, V].
    """
    if state is None:
        state = q.new_zeros(*q.shape[1:3], q.shape[-1], v.shape[-1], dtype=dtype)
    return _apply(q, k, v, g, keep, None if bonus is None else bonus.to(dtype), state, scale)


class _VectorDecay(torch.autograd.Function):
    """Takes the batch in groups of rows, for the cache's sake, and keeps the factors of every level for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        keep: Tensor | None,
        bonus: Tensor | None,
        state: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        o = empty_in_time_order(v)
        levels: list[Level] | None = [] if any(ctx.needs_input_grad) else None
        final, saved = [], []
        ctx.groups = row_groups(v)
        for rows in ctx.groups:
            query, key, value, decay = (load_rows(x, rows, state.dtype) for x in (q, k, v, g))
            own = query * key if bonus is None else query * key * _per_chunk(bonus, len(key))
            reset = per_token(keep, rows, q)
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
    @closed_gradient
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

            grad_states = torch.empty_like(states)
            grad_states[-1] = grads[1][rows]
            torch.bmm(query.mT, grad_o, out=grad_states[:-1].flatten(0, 2))
            for n in range(len(total) - 1, -1, -1):
                grad_states[n].addcmul_(total[n], grad_states[n + 1])
            before, grad_after = states[:-1].flatten(0, 2), grad_states[1:].flatten(0, 2)

            grad_v = torch.bmm(key, grad_after).baddbmm_(scores.mT, grad_o)
            grad_scores = torch.bmm(grad_o, value.mT)
            grad_query, grad_k = torch.bmm(grad_o, before.mT), torch.bmm(value, grad_after.mT)
            factorise_backward(levels, grad_scores, grad_query, grad_k)
            reset = per_token(keep, rows, q)
            grad_q = _read(grad_query, decay, reset, bonus, ctx.scale)

            # The diagonal holds no decay: it stays out of the gradient of g, where it would cancel up to rounding only.
            q_rows, k_rows = (load_rows(x, rows, states.dtype) for x in (q, k))
            read, written = q_rows * grad_q, k_rows * grad_k
            grad_g = suffix_sums(read.sub_(written)) if bonus is None else suffix_sums(read, 1) - suffix_sums(written)
            grad_g += (states[1:] * grad_states[1:]).sum(-1).view(-1, 1, q.shape[-1])
            if reset is not None:
                grad_g *= reset

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
        return grad_q, grad_k, grad_v, grad_g, None, grad_bonus, torch.cat(grad_initial), None


def _read(query: Tensor, decay: Tensor, reset: Tensor | None, bonus: Tensor | None, scale: float) -> Tensor:
    """scale * query times what it finds of the state before the step: with a bonus that is read before its decay."""
    left = decay if bonus is None else reset
    return query.mul_(scale) if left is None else torch.addcmul(query.new_zeros(()), query, left, value=scale)


def _per_chunk(bonus: Tensor, chunks: int) -> Tensor:
    """[H, K] as [M, 1, K]."""
    return bonus.repeat(chunks // len(bonus), 1).unsqueeze(1)


def per_token(keep: Tensor | None, rows: slice, q: Tensor) -> Tensor | None:
    """keep [N, B, 1, C] as [M, C, 1] for some rows."""
    return None if keep is None else keep[:, rows].expand(q[:, rows].shape[:-1]).reshape(-1, q.shape[-2], 1)


def row_groups(v: Tensor, values: int = GROUP_VALUES) -> list[slice]:
    """Equal slices of the batch with at most `values` numbers of v a thread; one slice off the CPU."""
    batch = v.shape[1]
    count = 1
    if v.device.type == "cpu":
        count = min(batch, -(-v.numel() // (values * torch.get_num_threads())))
    size = -(-batch // count)
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def load_rows(x: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """A fresh contiguous [M, C, .] of rows of the batch of x [N, B, H, C, .]."""
    x = x[:, rows]
    return torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x).flatten(0, 2)


def stack_rows(first: Tensor | None, second: Tensor, rows: slice, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Rows of the batch of two tensors [N, B, H, C, D] as a fresh [M, 2C, D], the second times `scale`.

    Without a first one its place is left to be filled."""
    second = second[:, rows]
    stack = torch.empty(*second.shape[:3], 2, *second.shape[3:], dtype=dtype, device=second.device)
    if first is not None:
        stack[..., 0, :, :].copy_(first[:, rows])
    stack[..., 1, :, :].copy_(second)
    if scale != 1.0:
        stack[..., 1, :, :] *= scale
    return stack.flatten(3, 4).flatten(0, 2)


def store_rows(target: Tensor, rows: slice, values: Tensor) -> None:
    """values [M, C, .] into rows of the batch of target [N, B, H, C, .]."""
    part = target[:, rows]
    part.copy_(values.unflatten(0, part.shape[:3]))


def empty_gradient(x: Tensor) -> Tensor:
    """Like the gradient of x: in time order where x is [N, B, H, C, D]."""
    return empty_in_time_order(x) if x.dim() == 5 else x.new_empty(x.shape)


def empty_in_time_order(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Like x [N, B, H, C, D], stored as [B, N, C, H, D]."""
    chunks, batch, heads, chunk, dim = x.shape
    return x.new_empty(batch, chunks, chunk, heads, dim, dtype=dtype).movedim((1, 3), (0, 2))


def _outputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    keep: Tensor | None,
    bonus: Tensor | None,
    state: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return empty_in_time_order(v), state.new_empty(state.shape)


_apply = one_node(_VectorDecay, _outputs, empty_gradient)
