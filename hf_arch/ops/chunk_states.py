"""The walk from chunk to chunk that every chunk form ends in: S_{n+1} = D_n S_n + U_n.

One gradient written by hand for all decays that are factors of whole entries of the state, real or complex:

    dL/dS_n = dL/d(S_n as output) + conj(D_n) dL/dS_{n+1}
    dL/dU_n = dL/dS_{n+1}      dL/dD_n = conj(S_n) dL/dS_{n+1}

Legend: N chunks; the other axes are the caller's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .custom_op import as_custom_op, manual_backward


class _Walk(torch.autograd.Function):
    """States before each chunk, and the one after the last.

    Args:
        increments: U [..., N, ...], N at `dim`.
        totals: D, the decay of each whole chunk; N at `dim`, the other axes broadcast.
        state: S_0, as `increments` without the axis `dim`.
        dim: the axis of the chunks.

    Returns:
        states like `increments`, and the final one like `state`.
    """

    @staticmethod
    def forward(ctx: Any, increments: Tensor, totals: Tensor, state: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        states, final = increments.new_empty(increments.shape), state.new_empty(state.shape)
        places = (*states.unbind(dim), final)
        places[0].copy_(state)
        walk = zip(places, places[1:], increments.unbind(dim), totals.unbind(dim), strict=False)
        for before, after, increment, total in walk:
            torch.addcmul(increment, total, before, out=after)
        ctx.save_for_backward(totals, states)
        ctx.dim = dim
        return states, final

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        totals, states = ctx.saved_tensors
        totals_conj = totals.conj_physical()  # a lazy one is lost where an operator runs under a dispatch mode
        grad_increments, grad_state = torch.empty_like(states), torch.empty_like(grads[1])
        places = (grad_state, *grad_increments.unbind(ctx.dim))
        places[-1].copy_(grads[1])
        # dL/dS_n = dL/d(S_n as output) + conj(D_n) dL/dS_{n+1}; dL/dU_n is dL/dS_{n+1} itself
        walk = zip(places, places[1:], grads[0].unbind(ctx.dim), totals_conj.unbind(ctx.dim), strict=False)
        for before, after, grad, total in reversed(list(walk)):
            torch.addcmul(grad, total, after, out=before)
        grad_totals = None
        if ctx.needs_input_grad[1]:
            # dL/dD_n = conj(S_n) dL/dS_{n+1}, summed over the axes that D_n broadcasts
            grad_totals = (states.conj_physical() * grad_increments).sum_to_size(totals.shape)
        return grad_increments, grad_totals, grad_state, None


chunk_states = as_custom_op(_Walk, ("increments", "state"))
