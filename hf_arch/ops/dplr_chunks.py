r"""The chunk form of the delta rule with a diagonal plus rank-one transition (RWKV7): one gradient by hand.

With z_t = a_t^T S_{t-1}, each step has two readers (a before its decay, r after it) and two writers (b z^T, k v^T). In
a chunk that starts from S, with P, Q what the readers find and the writers leave over the decays between them,

    (I - A_ab) z = a_in S + A_ak v      u = [z, v]      o = P_r u + r_in S      S' = D S + Q_out^T u

where A = P_a are the scores of the first readers. Backwards, with du = [dz, dL/dv so far] the gradient of the writes,

    du = P_r^T dL/do + Q_out dL/dS'        e = [(I - A_ab)^{-T} dz, dL/do]        dL/dv = du_v + A_ak^T e_a
    dL/dS = D dL/dS' + r_in^T dL/do + ((I - A_ab)^{-1} a_in)^T dz
    dL/dP = e u^T        dL/d(readers of S) = e S^T        dL/d(Q_out) = u dL/dS'^T        dL/dD = sum_v S dL/dS'

The decays enter by `Halved` (any decay, see `decay.py`) or, at half the time, by `Bounded`: where a chunk decays by no
more than exp(-MAX_DECAY), readers may carry exp(b) and writers exp(-b), b the cumulated log decays.

Legend: N chunks, B batch, H heads, C chunk (a power of two), K key dim, V value dim, M = N*B*H. Readers and writers of
a chunk are stacked [M, 2C, K]: a then r, b then k.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chunks import empty_chunks, empty_in_time_order, load_keep, load_rows, row_groups, stack_rows, store_rows
from .custom_op import as_custom_op, manual_backward
from .decay import Level, decay_products, factorise, factorise_backward, suffix_sums

GROUP_VALUES = 2**17  # that a thread takes at once, the best of the 2**16 to 2**24 tried
MAX_DECAY = 40.0
"""exp(40) is 2e17: its products stay far inside fp32, and every term keeps its relative precision."""


class Parts(NamedTuple):
    """What the products of a chunk need of readers, writers and decays."""

    scores: Tensor  # [M, 2C, 2C] of readers with writers, 0 where the writer comes later
    reads: Tensor  # [M, 2C, K] what reads the state at the chunk's start
    writes: Tensor  # [M, 2C, K] what writes into the state at its end
    total: Tensor  # [M, K] decay of the whole chunk


class _GeneralisedDelta(torch.autograd.Function):
    """Takes the batch in groups of rows, for the cache's sake.

    Layout, `keep`, `state` and results as `chunks.py` says: r, w (a log decay), k, a, b [N, B, H, C, K], v
    [N, B, H, C, V]. `scale` is that of r; `bounded` says that the w of every chunk sum to more than -MAX_DECAY.
    """

    @staticmethod
    def forward(
        ctx: Any,
        r: Tensor,
        w: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        keep: Tensor | None,
        state: Tensor,
        scale: float,
        bounded: bool,
    ) -> tuple[Tensor, Tensor]:
        decays = Bounded if bounded else Halved
        o = empty_in_time_order(v)
        final, saved = [], []
        groups = row_groups(v, GROUP_VALUES)
        length = v.shape[-2]
        identity = torch.eye(length, dtype=state.dtype, device=v.device)
        for rows in groups:
            reset = load_keep(keep, rows, w)
            parts, kept = decays.forward(
                stack_rows(a, r, rows, state.dtype, scale),
                stack_rows(b, k, rows, state.dtype),
                load_rows(w, rows, state.dtype),
                reset,
            )
            scores, reads, writes, total = parts
            system = -scores[:, :length, :length]
            solution = torch.linalg.solve_triangular(system, identity, upper=False, unitriangular=True)
            written = stack_rows(None, v, rows, state.dtype)
            fresh = solution @ (scores[:, :length, length:] @ written[:, length:])
            recall = solution @ reads[:, :length]

            states = state.new_empty(len(v) + 1, *state[rows].shape)
            states[0] = state[rows]
            walk = zip(
                *(x.unflatten(0, (len(v), -1)).unbind(0) for x in (fresh, recall, written, writes.mT, total)),
                states.flatten(1, 2).unbind(0),
                states[1:].flatten(1, 2).unbind(0),
                strict=False,
            )
            for fresh_n, recall_n, written_n, writes_n, total_n, before, after in walk:
                written_n[:, :length] = torch.baddbmm(fresh_n, recall_n, before)
                torch.bmm(writes_n, written_n, out=after).addcmul_(total_n.unsqueeze(-1), before)
            o_rows = torch.bmm(reads[:, length:], states[:-1].flatten(0, 2)).baddbmm_(scores[:, length:], written)
            store_rows(o, rows, o_rows)
            final.append(states[-1])
            if any(ctx.needs_input_grad):
                saved += [*parts, *kept, solution, recall, written, states]
        ctx.save_for_backward(r, w, k, v, a, b, keep, *saved)
        ctx.groups, ctx.scale, ctx.decays = groups, scale, decays
        return o, torch.cat(final)

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        r, w, k, v, a, b, keep, *saved = ctx.saved_tensors
        length = v.shape[-2]
        grad_r, grad_k, grad_v, grad_a, grad_b = (empty_in_time_order(x) for x in (r, k, v, a, b))
        grad_w = empty_in_time_order(w)
        grad_initial = []
        size = len(saved) // len(ctx.groups)
        for index, rows in enumerate(ctx.groups):
            of_group = saved[index * size : (index + 1) * size]
            parts, kept, (solution, recall, written, states) = Parts(*of_group[:4]), of_group[4:-4], of_group[-4:]
            scores, reads, writes, total = parts
            errors = stack_rows(None, grads[0], rows, states.dtype)
            grad_o = errors[:, length:]
            # du = P_r^T dL/do, still without what comes from later chunks
            grad_written = torch.bmm(scores[:, length:].mT, grad_o)
            grad_states = torch.empty_like(states)
            grad_states[-1] = grads[1][rows]
            torch.bmm(reads[:, length:].mT, grad_o, out=grad_states[:-1].flatten(0, 2))
            walk = zip(
                *(x.unflatten(0, (len(v), -1)).unbind(0) for x in (grad_written, writes, recall.mT, total)),
                grad_states.flatten(1, 2).unbind(0),
                grad_states[1:].flatten(1, 2).unbind(0),
                strict=False,
            )
            for grad_written_n, writes_n, recall_n, total_n, grad_before, grad_after in reversed(list(walk)):
                # du_n += Q_out dL/dS_{n+1}, then dL/dS_n = D dL/dS_{n+1} + r_in^T dL/do + ((I - A_ab)^{-1} a_in)^T dz_n
                grad_written_n.baddbmm_(writes_n, grad_after)
                grad_before.addcmul_(total_n.unsqueeze(-1), grad_after).baddbmm_(recall_n, grad_written_n[:, :length])
            # e_a = (I - A_ab)^{-T} dz, dL/dv = du_v + A_ak^T e_a
            errors[:, :length] = solution.mT @ grad_written[:, :length]
            grad_value = grad_written[:, length:].baddbmm_(scores[:, :length, length:].mT, errors[:, :length])

            # dL/dP = e u^T, dL/d(readers of S) = e S^T, dL/d(Q_out) = u dL/dS'^T, dL/dD = sum_v S dL/dS'
            before, grad_after = states[:-1].flatten(0, 2), grad_states[1:].flatten(0, 2)
            grad_parts = Parts(
                torch.bmm(errors, written.mT),
                torch.bmm(errors, before.mT),
                torch.bmm(written, grad_after.mT),
                (before * grad_after).sum(-1),
            )
            grad_readers, grad_writers, grad_g = ctx.decays.backward(parts, kept, grad_parts, load_keep(keep, rows, w))
            if ctx.scale != 1.0:
                grad_readers[:, length:] *= ctx.scale
            for target, grad in (
                (grad_a, grad_readers[:, :length]),
                (grad_r, grad_readers[:, length:]),
                (grad_b, grad_writers[:, :length]),
                (grad_k, grad_writers[:, length:]),
                (grad_v, grad_value),
                (grad_w, grad_g),
            ):
                store_rows(target, rows, grad)
            grad_initial.append(grad_states[0])
        return grad_r, grad_w, grad_k, grad_v, grad_a, grad_b, None, torch.cat(grad_initial), None, None


class Bounded:
    """b cumulates the log decays; readers carry exp(b), writers exp(-b), so that one product makes all scores.

    a^_i = a_i exp(b_{i-1})    r^_i = r_i exp(b_i)    w^_j = writer_j exp(-b_j)    P = [a^, r^] w^^T, masked
    reads = [a^, r^]           writes = w^ exp(b_C)   D = exp(b_C)
    """

    @staticmethod
    def forward(readers: Tensor, writers: Tensor, g: Tensor, reset: Tensor | None) -> tuple[Parts, tuple[Tensor, ...]]:
        length = g.shape[1]
        cumulated = g.new_ones(length, length).tril_() @ g
        growth = g.new_ones(len(g), length + 1, g.shape[2])
        torch.exp(cumulated, out=growth[:, 1:])
        fall = cumulated.neg_().exp_()
        readers[:, :length] *= growth[:, :-1]
        readers[:, length:] *= growth[:, 1:]
        writers.unflatten(1, (2, length)).mul_(fall.unsqueeze(1))
        scores = Bounded.masked(readers @ writers.mT, reset)
        total = growth[:, -1]
        reads, writes = readers, writers * total.unsqueeze(1)
        if reset is not None:
            _, prefix, suffix, same = decay_products(reset.squeeze(-1))
            reads = readers * _twice(prefix)
            writes *= _twice(suffix)
            total = total * same.unsqueeze(-1)
        return Parts(scores, reads, writes, total), (readers, writers, growth, fall)

    @staticmethod
    def masked(scores: Tensor, reset: Tensor | None) -> Tensor:
        """Scores [M, 2C, 2C], in place 0 where the writer comes later or belongs to another document."""
        length = scores.shape[-1] // 2
        causal = scores.new_ones(length, length).tril_()
        scores.mul_(torch.cat([causal.tril(-1).repeat(1, 2), causal.repeat(1, 2)]))
        if reset is not None:
            scores.mul_(decay_products(reset.squeeze(-1))[0].repeat(1, 2, 2))
        return scores

    @staticmethod
    def backward(parts: Parts, kept: list[Tensor], grad: Parts, reset: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        readers, writers, growth, fall = kept
        length = fall.shape[1]
        # dL/db_C = D dL/dD + sum_j writes_j dL/dwrites_j
        grad_total = grad.total * parts.total
        grad_total += (parts.writes * grad.writes).sum(1)
        # dL/dw^ = exp(b_C) dL/dwrites + dL/dP^T readers^, dL/dreaders^ = dL/dreads + dL/dP w^
        grad_readers, grad_writers = grad.reads, grad.writes.mul_(growth[:, -1:])
        if reset is not None:
            _, prefix, suffix, _ = decay_products(reset.squeeze(-1))
            grad_readers, grad_writers = grad_readers * _twice(prefix), grad_writers * _twice(suffix)
        grad_scores = Bounded.masked(grad.scores, reset)
        grad_readers.baddbmm_(grad_scores, writers)
        grad_writers.baddbmm_(grad_scores.mT, readers)

        # dL/db_i = r^_i dL/dr^_i - w^_i dL/dw^_i, and a^_{i+1} dL/da^_{i+1}, which comes with b_i
        # dL/dg_t = sum_{s >= t} dL/db_s + dL/db_C
        own, written = readers * grad_readers, writers * grad_writers
        grad_b = own[:, length:].sub_(written[:, :length]).sub_(written[:, length:])
        grad_g = suffix_sums(grad_b).add_(suffix_sums(own[:, :length], 1)).add_(grad_total.unsqueeze(1))
        if reset is not None:
            grad_g *= reset
        # dL/da = exp(b_{i-1}) dL/da^, dL/dr = exp(b_i) dL/dr^, dL/dwriter = exp(-b) dL/dw^
        grad_readers[:, :length] *= growth[:, :-1]
        grad_readers[:, length:] *= growth[:, 1:]
        grad_writers.unflatten(1, (2, length)).mul_(fall.unsqueeze(1))
        return grad_readers, grad_writers, grad_g


class Halved:
    """Products of decays by halving, which no decay can overflow; the levels are worked out again for the gradient."""

    @staticmethod
    def forward(readers: Tensor, writers: Tensor, g: Tensor, reset: Tensor | None) -> tuple[Parts, tuple[Tensor, ...]]:
        length = g.shape[1]
        decay = g.exp() if reset is None else g.exp() * reset
        query, key = Halved.read(_interleaved(readers), decay, reset), _interleaved(writers)
        scores, total = factorise(query, key, decay, None)
        scores, query, key = _grouped(_grouped(scores).mT).mT, _grouped(query), _grouped(key)
        products = readers[:, length:].unsqueeze(1) * writers.unflatten(1, (2, length))
        own = products.sum(-1)  # a step's own writes, for its second reader alone
        scores[:, length:].unflatten(-1, (2, length)).diagonal(dim1=1, dim2=3).copy_(own)
        return Parts(scores, query, key, total), (readers, writers, g)

    @staticmethod
    def read(query: Tensor, decay: Tensor, reset: Tensor | None) -> Tensor:
        """Interleaved queries times what each finds of the state before the step, in place."""
        pairs = query.view(*decay.shape[:2], 2, -1)
        pairs[:, :, 1] *= decay
        if reset is not None:
            pairs[:, :, 0] *= reset
        return query

    @staticmethod
    def backward(parts: Parts, kept: list[Tensor], grad: Parts, reset: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        readers, writers, g = kept
        length = g.shape[1]
        decay = g.exp() if reset is None else g.exp() * reset
        query, key = Halved.read(_interleaved(readers), decay, reset), _interleaved(writers)
        levels: list[Level] = []
        factorise(query, key, decay, levels)
        # dL/db_C = D dL/dD + sum_j writes_j dL/dwrites_j
        grad_total = grad.total * parts.total
        grad_total += (parts.writes * grad.writes).sum(1)

        # from the factors of the chunk (reads, writes, scores) to those of single steps
        grad_query, grad_key = _interleaved(grad.reads), _interleaved(grad.writes)
        factorise_backward(levels, _interleaved(_interleaved(grad.scores.mT).mT), grad_query, grad_key)
        grad_readers, grad_writers = _grouped(Halved.read(grad_query, decay, reset)), _grouped(grad_key)

        # dL/db_i = r_i dL/dr_i - writers_i dL/dwriters_i, and a_{i+1} dL/da_{i+1}, which comes with b_i
        # dL/dg_t = sum_{s >= t} dL/db_s + dL/db_C
        # The diagonal holds no decay: it stays out of it, where it would cancel up to rounding only.
        own, written = readers * grad_readers, writers * grad_writers
        grad_b = own[:, length:] - written[:, :length] - written[:, length:]
        grad_g = suffix_sums(grad_b).add_(suffix_sums(own[:, :length], 1)).add_(grad_total.unsqueeze(1))
        if reset is not None:
            grad_g *= reset
        # P_ii = r_i.writer_i: dL/dr_i += dL/dP_ii writer_i, dL/dwriter_i += dL/dP_ii r_i
        diagonal = grad.scores[:, length:].unflatten(-1, (2, length)).diagonal(dim1=1, dim2=3).unsqueeze(-1)
        grad_readers[:, length:] += (diagonal * writers.unflatten(1, (2, length))).sum(1)
        grad_writers.unflatten(1, (2, length)).add_(diagonal * readers[:, None, length:])
        return grad_readers, grad_writers, grad_g


def _interleaved(x: Tensor) -> Tensor:
    """[M, 2C, D] from two halves to one pair after the other, always a copy."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(1, 2)


def _grouped(x: Tensor) -> Tensor:
    """The inverse of `_interleaved`."""
    return x.unflatten(1, (-1, 2)).transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(1, 2)


def _twice(x: Tensor) -> Tensor:
    """[M, C] for both halves: [M, 2C, 1]."""
    return torch.cat([x, x], 1).unsqueeze(-1)


chunk_dplr = as_custom_op(_GeneralisedDelta, ("v", "state"), empty_chunks)
