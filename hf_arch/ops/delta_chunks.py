r"""The chunk form of the (gated) delta rule, with a gradient written by hand.

With the residuals r_t = v_t - S'^T k_t, a step writes beta_t k_t r_t^T: beta belongs to the writers alone. In a chunk
that starts from S, with L the decays between steps, p those from its first step, s those to its last, D all of them,

    (I + A_k) r = v - (p k) S        o = A_q r + (p q) S        S' = D S + (s beta k)^T r

where A_k (below the diagonal), A_q (and on it) are the scores L_ij k_i.(beta_j k_j), L_ij q_i.(beta_j k_j) of readers k
and q with writers beta k. Backwards, with dr the gradient of the residuals,

    dr = A_q^T dL/do + (s beta k) dL/dS'        dL/dv = (I + A_k)^{-T} dr          e = [-dL/dv, dL/do]
    dL/dS = D dL/dS' + [-(I + A_k)^{-1} p k, p q]^T [dr, dL/do]
    dL/dA = e r^T        dL/d(p k, p q) = e S^T        dL/d(s beta k) = r dL/dS'^T

The gradient of a log decay g_t needs no product of its own: with b the cumulated g, readers always come with exp(b) and
writers with exp(-b), so dL/db_i is the sum of score times gradient over row i less that over column i, and the like for
the state.

Legend: N chunks, B batch, H heads, C chunk (a power of two), K key dim, V value dim, M = N*B*H. Readers of a chunk are
stacked [M, 2C, K]: k then q.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chunks import empty_chunks, empty_in_time_order, load_keep, load_rows, row_groups, stack_rows, store_rows
from .custom_op import as_custom_op, manual_backward
from .decay import decay_products, suffix_sums

GROUP_VALUES = 2**18  # that a thread takes at once, the best of the 2**15 to 2**24 tried


class Decays(NamedTuple):
    """What the decays of chunks multiply; no decay at all is None."""

    between: Tensor  # [M, C, C], 0 above the diagonal; [1, C, C] without decays
    prefix: Tensor | None  # [M, C]
    suffix: Tensor | None  # [M, C]
    total: Tensor | None  # [M]


class Saved(NamedTuple):
    """What the forward pass leaves of a group of rows, for the backward pass."""

    strength: Tensor  # beta [M, C, 1]
    readers: Tensor  # [M, 2C, K]
    reads: Tensor  # of the state before the chunk, [M, 2C, K]: -(I + A_k)^-1 (p k), then p q
    writes: Tensor  # s beta k, [M, C, K]
    scores: Tensor  # A_k, then A_q, [M, 2C, C]
    solution: Tensor  # (I + A_k)^-1, [M, C, C]
    residual: Tensor  # r, [M, C, V]
    states: Tensor  # S before each chunk and after the last, [N + 1, B, H, K, V]


class _GatedDelta(torch.autograd.Function):
    """Takes the batch in groups of rows, for the cache's sake.

    Layout, `keep`, `state` and results as `chunks.py` says: q, k [N, B, H, C, K], v [N, B, H, C, V], beta and g (a log
    decay, or None) [N, B, H, C, 1]. `scale` is that of the queries.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        g: Tensor | None,
        keep: Tensor | None,
        state: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        o = empty_in_time_order(v)
        final, saved = [], []
        groups = row_groups(v, GROUP_VALUES)
        chunks, length = len(v), v.shape[-2]
        identity = torch.eye(length, dtype=state.dtype, device=v.device)
        for rows in groups:
            strength = load_rows(beta, rows, state.dtype)
            decays = _decays(g, keep, beta, rows, strength)
            readers = stack_rows(k, q, rows, state.dtype)
            key, query = readers.split(length, 1)
            scores = readers @ key.mT
            scores.unflatten(1, (2, length)).mul_((decays.between * strength.mT).unsqueeze(1))
            # An inverse (only what lies below the diagonal is read) leaves the wide sides to products.
            solution = torch.linalg.solve_triangular(scores[:, :length], identity, upper=False, unitriangular=True)
            reads = torch.empty_like(readers)
            recall, reads_q = reads.split(length, 1)
            if decays.prefix is None or decays.suffix is None:
                recall.baddbmm_(solution, key, beta=0, alpha=-1)
                reads_q.copy_(query)
                writes = key * strength
            else:
                recall.baddbmm_(solution * decays.prefix.unsqueeze(1), key, beta=0, alpha=-1)
                torch.mul(query, decays.prefix.unsqueeze(2), out=reads_q)
                writes = key * (strength * decays.suffix.unsqueeze(2))
            residual = solution @ load_rows(v, rows, state.dtype)

            states = state.new_empty(chunks + 1, *state[rows].shape)
            states[0] = state[rows]
            walk = zip(
                *_by_chunk(chunks, residual, recall, writes.mT), _totals(chunks, decays), *_pairs(states), strict=True
            )
            for residual_n, recall_n, writes_n, total_n, before, after in walk:
                residual_n.baddbmm_(recall_n, before)
                if total_n is None:
                    torch.baddbmm(before, writes_n, residual_n, out=after)
                else:
                    torch.bmm(writes_n, residual_n, out=after).addcmul_(total_n, before)
            o_rows = torch.bmm(reads_q, states[:-1].flatten(0, 2))
            o_rows.baddbmm_(scores[:, length:], residual, beta=scale, alpha=scale)
            store_rows(o, rows, o_rows)
            final.append(states[-1])
            if any(ctx.needs_input_grad):
                saved += [*Saved(strength, readers, reads, writes, scores, solution, residual, states), *decays]
        ctx.save_for_backward(q, k, v, beta, g, keep, *saved)
        ctx.groups, ctx.scale = groups, scale
        return o, torch.cat(final)

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, beta, g, keep, *saved = ctx.saved_tensors
        length = v.shape[-2]
        grad_q, grad_k, grad_v, grad_beta = (empty_in_time_order(x) for x in (q, k, v, beta))
        grad_g = None if g is None else empty_in_time_order(g)
        grad_initial = []
        size = len(saved) // len(ctx.groups)
        for index, rows in enumerate(ctx.groups):
            of_group = saved[index * size : (index + 1) * size]
            group = Saved(*of_group[: len(Saved._fields)])
            decays = Decays(*of_group[len(Saved._fields) :])
            strength, readers, residual = group.strength, group.readers, group.residual
            key = readers[:, :length]
            errors, grad_states = _walk_back(group, decays, grads[0][:, rows], grads[1][rows], ctx.scale)
            errors_k = errors[:, :length]
            # dL/dv = (I + A_k)^{-T} dr, and errors become e = [-dL/dv, dL/do]
            grad_value = group.solution.mT @ errors_k
            torch.neg(grad_value, out=errors_k)

            grad_after = grad_states[1:].flatten(0, 2)
            # dL/dA = e r^T; A_ij = L_ij reader_i.(beta_j k_j), below the diagonal for readers k
            grad_scores = torch.bmm(errors, residual.mT)
            grad_scores.unflatten(1, (2, length)).mul_(decays.between.unsqueeze(1))
            grad_scores[:, :length].diagonal(dim1=1, dim2=2).zero_()
            # dL/d(p reader) = e S^T and dL/d(s beta k) = r dL/dS'^T, without their decays p and s
            grad_readers = torch.bmm(errors, group.states[:-1].flatten(0, 2).mT)
            grad_writers = torch.bmm(residual, grad_after.mT)
            if decays.prefix is not None and decays.suffix is not None:
                grad_readers.unflatten(1, (2, length)).mul_(decays.prefix[:, None, :, None])
                grad_writers.mul_(decays.suffix.unsqueeze(2))
            # with G = L dL/dA: dL/d(beta k) += G^T readers, dL/dreaders += (G beta) k
            grad_writers.baddbmm_(grad_scores.mT, readers)
            grad_readers.baddbmm_(grad_scores.mul_(strength.mT), key)
            # dL/dbeta = dL/d(beta k).k, dL/dk = beta dL/d(beta k) + dL/d(reader k)
            grad_strength = (grad_writers * key).sum(-1, keepdim=True)
            store_rows(grad_k, rows, grad_writers.mul_(strength).add_(grad_readers[:, :length]))
            store_rows(grad_q, rows, grad_readers[:, length:])
            store_rows(grad_v, rows, grad_value)
            store_rows(grad_beta, rows, grad_strength)
            if grad_g is not None:
                grad_decay = _decay_gradient(group, grad_readers, grad_strength, grad_states)
                reset = load_keep(keep, rows, q)
                store_rows(grad_g, rows, grad_decay if reset is None else grad_decay * reset)
            grad_initial.append(grad_states[0])
        return grad_q, grad_k, grad_v, grad_beta, grad_g, None, torch.cat(grad_initial), None


def _walk_back(group: Saved, decays: Decays, grad_o: Tensor, grad_final: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """From the last chunk to the first: [dr, dL/do] of every chunk, [M, 2C, V], and the gradients of the states."""
    length, chunks = group.residual.shape[1], len(group.states) - 1
    # dr = A_q^T dL/do, still without what comes from later chunks
    errors = group.readers.new_empty(len(group.readers), 2 * length, grad_o.shape[-1])
    errors_k, errors_q = errors.split(length, 1)
    torch.mul(grad_o, scale, out=errors_q.unflatten(0, grad_o.shape[:3]))
    errors_k.baddbmm_(group.scores[:, length:].mT, errors_q, beta=0)
    grad_states = torch.empty_like(group.states)
    grad_states[-1] = grad_final
    parts = _by_chunk(chunks, errors, errors_k, group.reads.mT, group.writes)
    walk = zip(*parts, _totals(chunks, decays), *_pairs(grad_states), strict=True)
    for errors_n, errors_k_n, reads_n, writes_n, total_n, grad_before, grad_after in reversed(list(walk)):
        # dr_n += (s beta k)_n dL/dS_{n+1}, then dL/dS_n = D_n dL/dS_{n+1} + reads_n^T [dr_n, dL/do_n]
        errors_k_n.baddbmm_(writes_n, grad_after)
        if total_n is None:
            torch.baddbmm(grad_after, reads_n, errors_n, out=grad_before)
        else:
            torch.mul(grad_after, total_n, out=grad_before).baddbmm_(reads_n, errors_n)
    return errors, grad_states


def _decay_gradient(group: Saved, grad_readers: Tensor, grad_strength: Tensor, grad_states: Tensor) -> Tensor:
    """The gradient of the log decays, [M, C, 1]; `grad_readers` is overwritten.

    dL/db_i = readers_i.dL/dreaders_i - (beta k)_i.dL/d(beta k)_i
    dL/dg_t = sum_{s >= t} dL/db_s + sum S' dL/dS'
    """
    length = group.residual.shape[1]
    read = grad_readers.mul_(group.readers).sum(-1, keepdim=True)
    grad_b = read[:, :length] + read[:, length:] - group.strength * grad_strength
    passed_on = group.states[1:].flatten(3).unsqueeze(-2) @ grad_states[1:].flatten(3).unsqueeze(-1)
    return suffix_sums(grad_b) + passed_on.view(-1, 1, 1)


def _decays(g: Tensor | None, keep: Tensor | None, beta: Tensor, rows: slice, strength: Tensor) -> Decays:
    reset = load_keep(keep, rows, beta)
    decay = reset if g is None else load_rows(g, rows, strength.dtype).exp_()
    if decay is None:
        length = strength.shape[1]
        return Decays(strength.new_ones(1, length, length).tril_(), None, None, None)
    if g is not None and reset is not None:
        decay = decay * reset
    return Decays(*decay_products(decay.squeeze(-1)))


def _by_chunk(chunks: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """For each tensor [M, ., .] its parts [B*H, ., .], one a chunk."""
    return [x.unflatten(0, (chunks, -1)).unbind(0) for x in tensors]


def _totals(chunks: int, decays: Decays) -> Sequence[Tensor | None]:
    return [None] * chunks if decays.total is None else decays.total.view(chunks, -1, 1, 1).unbind(0)


def _pairs(states: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The states [N + 1, B, H, K, V] before and after each chunk, [B*H, K, V]."""
    each = states.flatten(1, 2).unbind(0)
    return each[:-1], each[1:]


chunk_gated_delta = as_custom_op(_GatedDelta, ("v", "state"), empty_chunks)
