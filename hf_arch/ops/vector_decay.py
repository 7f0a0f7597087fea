r"""The chunk form of linear attention with one decay per key channel.

Scores need $\sum_c q_{ic} k_{jc} \prod_{j<s\le i} d_{sc}$: the product of decays is inside the sum over channels, so no
single matrix of decays exists. It is split by halving (see `decay.py`): with blocks of m steps, q carries the product
from its block's first step and k the product up to its block's last, so that each pair of neighbouring blocks costs one
matrix product; then both factors are extended to blocks of 2m by multiplying halves with a block's total decay. After
log2(C) levels the same factors are those that read from, and write into, the state between chunks. Only products of
numbers in [0, 1] are formed: no decay is too strong, and a decay of 0 resets exactly.

Backward recomputes the factors. The gradient of the log decays needs no products at all: with b the cumulated log
decays, q_i always comes with exp(b_i) and k_j with exp(-b_j), so dL/db = q dq - k dk, and dL/dg is its reverse
cumulated sum plus what the state at the chunk's end passes on (GLA, arXiv:2312.06635).

Legend: N chunks, B batch, H heads, C chunk (a power of two), K key dim, V value dim, M = N*B*H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .decay import Level, factorise, factorise_backward, suffix_sums


def chunk_vector_decay(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, keep: Tensor | None, bonus: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Linear attention over chunks.

    Args:
        q: [N, B, H, C, K], scaled. k, g (log decay): same shape. v: [N, B, H, C, V].
        keep: [N, B, 1, C], 0 where a document starts, or None.
        bonus: [H, K] or None.
        state: [B, H, K, V] or None.

    Returns:
        o [N, B, H, C, V] and the final state [B, H, K, V].
    """
    if state is None:
        state = q.new_zeros(*q.shape[1:3], q.shape[-1], v.shape[-1])
    return _VectorDecay.apply(q, k, v, g, keep, None if bonus is None else bonus.to(q.dtype), state)


class _VectorDecay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, keep: Tensor | None, bonus: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        query, key, decay = _base_factors(q, k, g, keep, bonus)
        scores, total = factorise(query, key, decay, None)
        scores.diagonal(dim1=-2, dim2=-1).copy_(_diagonal(q, k, bonus))
        value = v.flatten(0, 2)
        states = state.new_empty(len(q) + 1, *state.shape)
        states[0] = state
        torch.bmm(key.transpose(-1, -2), value, out=states[1:].flatten(0, 2))
        for n, total_n in enumerate(total.view(len(q), *state.shape[:-1], 1).unbind(0)):
            states[n + 1].addcmul_(total_n, states[n])
        o = torch.bmm(query, states[:-1].flatten(0, 2)).baddbmm_(scores, value)
        ctx.save_for_backward(q, k, v, g, keep, bonus, states)
        return o.view_as(v), states[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, keep, bonus, states = ctx.saved_tensors
        grad_o, grad_state = grads[0].flatten(0, 2), grads[1]
        value = v.flatten(0, 2)
        query, key, decay = _base_factors(q, k, g, keep, bonus)
        read = _read_factor(decay, keep, bonus, q.shape)
        levels: list[Level] = []
        scores, total = factorise(query, key, decay, levels)
        scores.diagonal(dim1=-2, dim2=-1).copy_(_diagonal(q, k, bonus))

        grad_states = torch.empty_like(states)
        grad_states[-1] = grad_state
        torch.bmm(query.transpose(-1, -2), grad_o, out=grad_states[:-1].flatten(0, 2))
        total = total.view(len(q), *states.shape[1:-1], 1)
        for n in range(len(q) - 1, -1, -1):
            grad_states[n].addcmul_(total[n], grad_states[n + 1])
        grad_out = grad_states[1:].flatten(0, 2)

        grad_v = torch.bmm(key, grad_out).baddbmm_(scores.transpose(-1, -2), grad_o)
        grad_scores = torch.bmm(grad_o, value.transpose(-1, -2))
        grad_q = torch.bmm(grad_o, states[:-1].flatten(0, 2).transpose(-1, -2))
        grad_k = torch.bmm(value, grad_out.transpose(-1, -2))
        factorise_backward(levels, grad_scores, grad_q, grad_k)
        if read is not None:
            grad_q.mul_(read)
        grad_q, grad_k = grad_q.view_as(q), grad_k.view_as(k)

        # The diagonal holds no decay: it is left out of the gradient of g, where it would cancel only up to rounding.
        grad_b = (states[1:] * grad_states[1:]).sum(-1).unsqueeze(-2)
        if bonus is None:
            grad_g = grad_b + suffix_sums(q * grad_q - k * grad_k)
        else:
            grad_g = grad_b + suffix_sums(q * grad_q, 1) - suffix_sums(k * grad_k)
        if keep is not None:
            grad_g = grad_g * keep.unsqueeze(-1)

        grad_diagonal = grad_scores.diagonal(dim1=-2, dim2=-1).reshape(q.shape[:-1]).unsqueeze(-1)
        if bonus is None:
            grad_bonus = None
            grad_q.addcmul_(grad_diagonal, k)
            grad_k.addcmul_(grad_diagonal, q)
        else:
            weight = bonus.unsqueeze(-2)
            grad_bonus = (grad_diagonal * q * k).sum((0, 1, 3))
            grad_q.add_(grad_diagonal * k * weight)
            grad_k.add_(grad_diagonal * q * weight)
        return grad_q, grad_k, grad_v.view_as(v), grad_g, None, grad_bonus, grad_states[0].clone()


def _base_factors(
    q: Tensor, k: Tensor, g: Tensor, keep: Tensor | None, bonus: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Fresh [M, C, K] factors for blocks of one step, and the decays."""
    decay = g.exp()
    if keep is not None:
        decay *= keep.unsqueeze(-1)
    read = _read_factor(decay, keep, bonus, q.shape)
    query = q.clone() if read is None else q * read.view_as(q)
    return query.flatten(0, 2), k.clone().flatten(0, 2), decay.flatten(0, 2)


def _read_factor(decay: Tensor, keep: Tensor | None, bonus: Tensor | None, shape: torch.Size) -> Tensor | None:
    """What multiplies the state before it is read: the decay, or with a bonus only the reset at a document's start."""
    if bonus is None:
        return decay
    return None if keep is None else keep.unsqueeze(-1).expand(shape).reshape(-1, *shape[-2:])


def _diagonal(q: Tensor, k: Tensor, bonus: Tensor | None) -> Tensor:
    """The weight [M, C] with which every token reads itself."""
    own = q * k if bonus is None else q * k * bonus.unsqueeze(-2)
    return own.sum(-1).flatten(0, 2)


class DecayScores(torch.autograd.Function):
    """The factorisation alone, for two readers and two writers a step (the generalised delta rule).

    `apply(query, key, g, keep)` with query, key [M, C, 2, K], g (log decay) [M, C, K], keep [M, C, 1] or None. The
    first reader reads the state before the step's decay and writes; the second reads it after both. Returns

        scores [M, C, 2, C, 2] between readers and writers; a step's own writes count for its second reader alone
        query, key [M, C, 2, K]: what reads the state at the chunk's start, and writes into the state at its end
        total [M, K]: decay of the whole chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, g: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        decay = g.exp() if keep is None else g.exp() * keep
        query_in, key_out = _read_twice(query, decay, keep), key.clone()
        scores, total = factorise(query_in.flatten(1, 2), key_out.flatten(1, 2), decay, None)
        scores = scores.view(*query.shape[:3], *key.shape[1:3])
        scores[:, :, 1].diagonal(dim1=1, dim2=2).copy_((query[:, :, 1:] * key).sum(-1).transpose(1, 2))
        ctx.save_for_backward(query, key, g, keep)
        return scores, query_in, key_out, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, g, keep = ctx.saved_tensors
        grad_scores, grad_in, grad_out, grad_total = grads
        decay = g.exp() if keep is None else g.exp() * keep
        query_in, key_out = _read_twice(query, decay, keep), key.clone()
        levels: list[Level] = []
        _, total = factorise(query_in.flatten(1, 2), key_out.flatten(1, 2), decay, levels)
        grad_b_end = (key_out * grad_out).sum((1, 2)) + total * grad_total

        grad_query, grad_key = grad_in.flatten(1, 2).clone(), grad_out.flatten(1, 2).clone()
        factorise_backward(levels, grad_scores.flatten(3, 4).flatten(1, 2), grad_query, grad_key)
        grad_query, grad_key = _read_twice(grad_query.view_as(query), decay, keep), grad_key.view_as(key)

        own = query * grad_query
        grad_b = own[:, :, 1] - (key * grad_key).sum(2)
        grad_g = grad_b_end.unsqueeze(1) + suffix_sums(grad_b) + suffix_sums(own[:, :, 0], 1)
        if keep is not None:
            grad_g = grad_g * keep

        grad_diagonal = grad_scores[:, :, 1].diagonal(dim1=1, dim2=2).transpose(1, 2).unsqueeze(-1)
        grad_query[:, :, 1] += (grad_diagonal * key).sum(2)
        grad_key += grad_diagonal * query[:, :, 1:]
        return grad_query, grad_key, grad_g, None


def _read_twice(query: Tensor, decay: Tensor, keep: Tensor | None) -> Tensor:
    """A copy of `query` [M, C, 2, K] times what each reader finds of the state before the step."""
    first = query[:, :, 0] if keep is None else query[:, :, 0] * keep
    return torch.stack([first, query[:, :, 1] * decay], 2)
