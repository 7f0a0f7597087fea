r"""The mesa layer: a linear regression on all tokens so far, solved exactly at every token (von Oswald et al. 2025,
MesaNet, arXiv 2506.05233).

    A_t = exp(g_t) A_{t-1} + beta_t k_t k_t^T,   S_t = exp(g_t) S_{t-1} + beta_t k_t v_t^T
    o_t = S_t^T x_t,   (A_t + diag(lam)) x_t = q_t

The systems are solved in fp64, a chunk of tokens at a time. They stand outside autograd: with
M = A + diag(lam), y = M^-T dL/dx is the gradient of q, and -y x^T that of M, which is the gradient of the residual
q - M x with respect to its parts. That residual is one call of linear attention with x for queries.

Legend: B batch, T time, H heads, K key dim, V value dim, N chunks, C chunk. States are fp32, outputs have v's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from .chunks import from_chunks, to_chunks
from .custom_op import as_custom_op, manual_backward
from .decay import decay_products
from .linear_attention import linear_attention
from .recurrence import LOG_DECAY, Call, Recurrence

Pair = tuple[Tensor, Tensor]
CHUNK = 16
"""Tokens whose K x K systems are held at once."""


@dataclass(eq=False, repr=False)
class Mesa(Call[Pair]):
    """A_t = exp(g_t) A_{t-1} + beta_t k_t k_t^T, o_t = S_t^T (A_t + diag(lam))^-1 q_t: least squares, exactly.

    With S_t = exp(g_t) S_{t-1} + beta_t k_t v_t^T. A token with k = 0 and g = 0 leaves the states alone wherever it
    stands: padding is passed so.

    The output [B, T, H, V] has v's dtype, the state is (A, S) in fp32 (fp64 for fp64 inputs).
    """

    q: Annotated[Tensor, "B T H K", "queries, any floating dtype"]
    k: Annotated[Tensor, "B T H K", "keys"]
    v: Annotated[Tensor, "B T H V", "values"]
    beta: Annotated[Tensor, "B T H", "weight of each token >= 0"]
    g: Annotated[Tensor, "B T H", LOG_DECAY]
    lam: Annotated[Tensor, "H K", "regularisation > 0 of each entry of the solution"]

    states = ("B H K K", "B H K V")
    output = "v"

    def naive(self) -> tuple[Tensor, Pair]:
        ridge = torch.diag_embed(self.lam.double())

        def advance(states: Pair, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> tuple[Tensor, Pair]:
            written, decay = (beta.unsqueeze(-1) * k).unsqueeze(-1), decay[..., None, None]
            moments = decay * states[0] + written * k.unsqueeze(-2)
            state = decay * states[1] + written * v.unsqueeze(-2)
            solution = torch.linalg.solve(moments.double() + ridge, q.double()).to(q.dtype)
            return (solution.unsqueeze(-2) @ state).squeeze(-2), (moments, state)

        return self.each_token(advance, self.q, self.k, self.v, self.beta, self.g.to(self.dtype).exp())

    def chunk(self) -> tuple[Tensor, Pair]:
        q, k, v, lam = (x.to(self.dtype) for x in (self.q, self.k, self.v, self.lam))
        before, state = (None, None) if self.state is None else self.state
        written = self.beta.to(self.dtype).unsqueeze(-1) * k
        g = self.g.to(self.dtype)
        keep = self.keep()
        with torch.no_grad():
            arrays = (*(x.detach() for x in (k, written, g, lam)), None if before is None else before.detach(), keep)
            solution = _solve(q.detach(), arrays)
        common: dict[str, Any] = {
            "scale": 1.0,
            "output_final_state": self.output_final_state,
            "segment_ids": self.segment_ids,
        }
        turned = None if before is None else before.mT
        product, moments = linear_attention(solution, k, written, g, initial_state=turned, **common)
        solution = attach(q - product - lam * solution, solution, *arrays)
        out, state = linear_attention(solution, written, v, g, initial_state=state, **common)
        return out, self.start_state() if moments is None or state is None else (moments.mT, state)


def _solve(q: Tensor, arrays: tuple[Tensor | None, ...], transposed: bool = False) -> Tensor:
    """x of the system at every token, for right-hand sides q [B, T, H, K]; in q's dtype, computed in fp64."""
    k, written, g, lam, moments, keep = arrays
    assert k is not None and written is not None and g is not None and lam is not None
    length, width = q.shape[1], q.shape[-1]
    size = min(CHUNK, 1 << max(length - 1, 0).bit_length())
    right, key, write, decay = (to_chunks(x, size, torch.float64) for x in (q, k, written, g))
    decay = decay.exp()
    if keep is not None:
        decay = decay * to_chunks(keep.unsqueeze(-1), size, torch.float64, pad_value=1.0)
    ridge = lam.double().unsqueeze(-2)
    current, solutions = None if moments is None else moments.double(), []
    for n in range(right.shape[0]):
        between, prefix, _, _ = decay_products(decay[n])
        outer = (write[n].unsqueeze(-1) * key[n].unsqueeze(-2)).flatten(-2)
        systems = (between @ outer).unflatten(-1, (width, width))
        if current is not None:
            systems += prefix[..., None, None] * current.unsqueeze(-3)
        current = systems[..., -1, :, :].clone() if n + 1 < len(right) else None
        systems.diagonal(dim1=-2, dim2=-1).add_(ridge)
        solution, _ = torch.linalg.solve_ex(systems.mT if transposed else systems, right[n].unsqueeze(-1))
        solutions.append(solution.squeeze(-1))
    return from_chunks(torch.stack(solutions), length, q.dtype)


class _Attach(torch.autograd.Function):
    """The solution, whose gradient goes to the residual of its system: y = M^-T dL/dx."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        solution: Tensor,
        k: Tensor,
        written: Tensor,
        g: Tensor,
        lam: Tensor,
        moments: Tensor | None,
        keep: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(k, written, g, lam, moments, keep)
        return solution.clone()

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _solve(grads[0], ctx.saved_tensors, transposed=True), None, None, None, None, None, None, None


attach = as_custom_op(_Attach, ("solution",))

mesa = Recurrence(Mesa, "mesa")
