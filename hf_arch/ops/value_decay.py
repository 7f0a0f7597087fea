r"""The chunk form of linear attention that decays along the value channels: the first pass over slots (GSA, ABC).

    S_t = S_{t-1} diag(exp g_t) + k_t v_t^T          o_t = q_t^T S_t

that is $o_{tc} = \sum_{j \le t} (q_t \cdot k_j) v_{jc} \prod_{j<s\le t} d_{sc}$. It is the transpose of `vector_decay`:
what is an input there (scores of decayed factors) is a gradient here, and the other way round, so that the same halving
serves. In a chunk that starts from S, with A = q k^T, b the cumulated log decays and D = exp(b_C),

    o_ic = sum_{j<=i} A_ij v_jc exp(b_ic - b_jc) + exp(b_ic) (q_i^T S)_c        S' = S D + k^T (v exp(b_C - b))

Backwards, with the decayed reader r = dL/do exp(b) and writer w = v exp(b_C - b),

    dL/dS = dL/dS' D + q^T r        dL/dA_ij = sum_c dL/do_ic v_jc exp(b_ic - b_jc)
    dL/dq = dL/dA k + r S^T         dL/dk = dL/dA^T q + w dL/dS'^T

and dL/dv_j = sum_i A_ij dL/do_i exp(b_i - b_j) + exp(b_C - b_j) (k_j^T dL/dS').

Legend: N chunks, B batch, H heads, C chunk (a power of two), K key dim, V value dim, M = N*B*H.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .custom_op import as_custom_op, manual_backward
from .decay import Level, add_product, factorise, factorise_backward, scores_of_level, suffix_sums
from .native import Pointer, contiguous, must_have_memory
from .vector_decay import KERNELS, Gradients, native_attention


class _ValueDecay(torch.autograd.Function):
    """The recurrence above over chunks.

    Args:
        q: [N, B, H, C, K], scaled. k: same shape. v, g (log decay): [N, B, H, C, V].
        keep: [N, B, 1, C], 0 where a document starts, or None.
        state: [B, H, K, V].

    Returns:
        o [N, B, H, C, V] and the final state [B, H, K, V].
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, keep: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        query, key, decay = q.flatten(0, 2), k.flatten(0, 2), _decay(g, keep)
        scores = query @ key.transpose(-1, -2)
        prefix, value, total = decay.clone(), v.flatten(0, 2).clone(), decay.reshape(-1, 1, v.shape[-1])
        o = value * scores.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        length, dim = value.shape[1:]
        rows = 1
        while rows < length:
            prefix_2, o_2 = (x.view(-1, 2, rows, dim)[:, 1] for x in (prefix, o))
            value_1 = value.view(-1, 2, rows, dim)[:, 0]
            total_1, total_2 = total[0::2], total[1::2]
            cross = scores_of_level(scores, rows).reshape(-1, rows, rows)
            o_2.addcmul_(prefix_2, add_product(torch.zeros_like(value_1), cross, value_1))
            prefix_2.mul_(total_1)
            value_1.mul_(total_2)
            total = total_1 * total_2
            rows *= 2

        states = state.new_empty(len(q) + 1, *state.shape)
        states[0] = state
        torch.bmm(key.transpose(-1, -2), value, out=states[1:].flatten(0, 2))
        for n, total_n in enumerate(total.view(len(q), *state.shape[:2], 1, dim).unbind(0)):
            states[n + 1].addcmul_(total_n, states[n])
        o.addcmul_(prefix, query @ states[:-1].flatten(0, 2))
        ctx.save_for_backward(q, k, v, g, keep, states)
        return o.view_as(v), states[-1].clone()

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, keep, states = ctx.saved_tensors
        grad_o, grad_state = grads[0].contiguous(), grads[1]
        decay = _decay(g, keep)
        query, key = q.flatten(0, 2), k.flatten(0, 2)
        # the same halving as in `vector_decay` gives dL/dA, and makes r and w of the factors of single steps
        reader, writer = grad_o.flatten(0, 2) * decay, v.flatten(0, 2).clone()
        levels: list[Level] = []
        grad_scores, total = factorise(reader, writer, decay, levels)
        grad_scores.diagonal(dim1=-2, dim2=-1).copy_((grad_o * v).sum(-1).flatten(0, 2))

        # dL/dS_n = dL/dS_{n+1} D_n + q_n^T r_n
        grad_states = torch.empty_like(states)
        grad_states[-1] = grad_state
        torch.bmm(query.transpose(-1, -2), reader, out=grad_states[:-1].flatten(0, 2))
        total = total.view(len(q), *states.shape[1:3], 1, v.shape[-1])
        for n in range(len(q) - 1, -1, -1):
            grad_states[n].addcmul_(total[n], grad_states[n + 1])
        grad_out, before = grad_states[1:].flatten(0, 2), states[:-1].flatten(0, 2)

        # dL/dq = dL/dA k + r S^T, dL/dk = dL/dA^T q + w dL/dS'^T
        grad_q = torch.bmm(reader, before.transpose(-1, -2)).baddbmm_(grad_scores, key)
        grad_k = torch.bmm(writer, grad_out.transpose(-1, -2)).baddbmm_(grad_scores.transpose(-1, -2), query)
        # with A in the place of dL/dP: o less its diagonal, and dL/dv, from q^T S and k^T dL/dS'
        scores = query @ key.transpose(-1, -2)
        read, grad_v = query @ before, key @ grad_out
        factorise_backward(levels, scores, read, grad_v)
        read, grad_v = read.mul_(decay).view_as(v), grad_v.view_as(v)

        # dL/dg_t = sum_{s >= t} (dL/do o - v dL/dv)_s + sum_k S' dL/dS'; as in `vector_decay`, the diagonal stays out.
        grad_g = suffix_sums(grad_o * read - v * grad_v) + (states[1:] * grad_states[1:]).sum(-2, keepdim=True)
        if keep is not None:
            grad_g = grad_g * keep.unsqueeze(-1)
        # the diagonal: dL/dv_i += A_ii dL/do_i
        grad_v.addcmul_(scores.diagonal(dim1=-2, dim2=-1).reshape(v.shape[:-1]).unsqueeze(-1), grad_o)
        return grad_q.view_as(q), grad_k.view_as(k), grad_v, grad_g, None, grad_states[0].clone()


def _decay(g: Tensor, keep: Tensor | None) -> Tensor:
    """[M, C, V]."""
    return (g.exp() if keep is None else g.exp() * keep.unsqueeze(-1)).flatten(0, 2)


chunk_value_decay = as_custom_op(_ValueDecay, ("v", "state"))


class NativeValueDecay(torch.autograd.Function):
    """The same by the C kernels of `vector_decay`: its transpose, so that what one computes is a gradient of the other.

    q (scaled), k [B, T, H, K], g, v [B, T, H, V], keep [B, T] or None, state [B, H, K, V], all fp32 on a CPU, to o
    [B, T, H, V] and the final state.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, g: Tensor, keep: Tensor | None, v: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        kernels = KERNELS.loaded()
        o, final = v.new_empty(v.shape), state.new_empty(state.shape)
        attention = native_attention(v, v, g, k, None, keep, turned=True)
        initial, query = contiguous(state, q)
        results = Pointer(final), Pointer(o)
        must_have_memory(kernels.value_decay(ctypes.byref(attention), Pointer(query), Pointer(initial), *results))
        ctx.save_for_backward(q, k, g, keep, v, state)
        return o, final

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, g, keep, v, state = ctx.saved_tensors
        kernels = KERNELS.loaded()
        initial, query, grad_final = contiguous(state, q, grads[1])
        o, grad_v, grad_g, grad_q, grad_k, grad_state = (
            torch.empty(x.shape, dtype=x.dtype) for x in (v, v, v, q, k, state)
        )
        attention = native_attention(grads[0], v, g, k, None, keep, turned=True)
        walked = Pointer(grad_state), Pointer(grad_q)  # of that state there is no use
        must_have_memory(kernels.vector_decay(ctypes.byref(attention), Pointer(initial), *walked))
        to = Gradients(grad_state, o, grad_v, grad_g, grad_k, None)
        given = Pointer(initial), Pointer(grad_final), Pointer(query)
        must_have_memory(kernels.vector_decay_backward(ctypes.byref(attention), *given, ctypes.byref(to)))
        return grad_q, grad_k, grad_g, None, grad_v, grad_state
