r"""The delta rule with momentum: what corrects the state is a running average of corrections (Momentum DeltaNet, arXiv
2605.05838).

The pair (S, M) follows a matrix recurrence in time with scalar entries, so that over a chunk, with A and U the products
of the decays a and m between two tokens,

    S_t = sum_s c_ts w_s u_s^T + p_t S_0 + r_t M_0,   c = A diag(beta) U,   r_t = sum_s A_ts beta_s U_s0

and what a token corrects needs the states before it: one unit triangular system a chunk gives all u.

Legend: B batch, T time, H heads, K key dim, V value dim, N chunks, C chunk. States are fp32, outputs have v's dtype.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .chunks import from_chunks, to_chunks
from .custom_op import as_custom_op, manual_backward
from .decay import decay_products
from .recurrence import LOG_DECAY, OPTION, ChunkedCall, Recurrence, default_scale

Pair = tuple[Tensor, Tensor]


@dataclass(eq=False, repr=False)
class MomentumDeltaRule(ChunkedCall[Pair]):
    """M_t = exp(m_t) M_{t-1} + k_t u_t^T, S_t = exp(g_t) S_{t-1} + beta_t M_t, o_t = (scale q_t)^T S_t: momentum.

    With u_t = v_t - S_{t-1}^T e_t: e reads the state before its decay. exp(m) = 0 is the delta rule.

    A token with k = v = e = 0, beta = 0 and g = m = 0 leaves both states alone wherever it stands.

    The output [B, T, H, V] has v's dtype, the state is (S, M) in fp32 (fp64 for fp64 inputs). Chunks have 32 tokens.
    """

    q: Annotated[Tensor, "B T H K", "queries, any floating dtype"]
    k: Annotated[Tensor, "B T H K", "what is written"]
    v: Annotated[Tensor, "B T H V", "values"]
    e: Annotated[Tensor, "B T H K", "what reads the state for the correction"]
    g: Annotated[Tensor, "B T H", LOG_DECAY, "of S"]
    m: Annotated[Tensor, "B T H", LOG_DECAY, "of M"]
    beta: Annotated[Tensor, "B T H", "how much of M enters S"]
    _: KW_ONLY
    scale: Annotated[float | None, OPTION, "of the queries; K^-0.5 if None"] = None

    states = ("B H K V", "B H K V")
    output = "v"

    def naive(self) -> tuple[Tensor, Pair]:
        def advance(
            states: Pair, q: Tensor, k: Tensor, v: Tensor, e: Tensor, a: Tensor, mu: Tensor, beta: Tensor
        ) -> tuple[Tensor, Pair]:
            state, momentum = states
            error = v - (e.unsqueeze(-2) @ state).squeeze(-2)
            momentum = mu[..., None, None] * momentum + k.unsqueeze(-1) * error.unsqueeze(-2)
            state = a[..., None, None] * state + beta[..., None, None] * momentum
            return (q.unsqueeze(-2) @ state).squeeze(-2), (state, momentum)

        query = self.q.to(self.dtype) * default_scale(self.scale, self.q)
        decays = (x.to(self.dtype).exp() for x in (self.g, self.m))
        return self.each_token(advance, query, self.k, self.v, self.e, *decays, self.beta)

    def chunk(self) -> tuple[Tensor, Pair]:
        chunk, keep = self.chunk_length(), self.keep_chunks()
        q, k, v, e, g, m, beta = (
            to_chunks(_EvenGradient.apply(x), chunk, self.dtype)
            for x in (self.q, self.k, self.v, self.e, self.g, self.m, self.beta)
        )
        q = q * default_scale(self.scale, self.q)
        a, mu = (x.exp() if keep is None else x.exp() * keep for x in (g, m))
        between_a, prefix_a, _, _ = decay_products(a)
        between_m, prefix_m, suffix_m, total_m = decay_products(mu)
        taken = between_a * beta.unsqueeze(-2)
        mixed = taken @ between_m
        from_m = (taken * prefix_m.unsqueeze(-2)).sum(-1)
        # The same of the state before each token.
        before = F.pad(mixed[..., :-1, :], (0, 0, 1, 0))
        before_s, before_m = F.pad(prefix_a[..., :-1], (1, 0), value=1.0), F.pad(from_m[..., :-1], (1, 0))
        if keep is not None:
            before, before_s, before_m = before * keep.unsqueeze(-1), before_s * keep, before_m * keep
        identity = torch.eye(chunk, dtype=self.dtype, device=q.device)
        system = identity + (e @ k.mT) * before
        known = torch.cat([v, e * before_s.unsqueeze(-1), e * before_m.unsqueeze(-1)], -1)
        solved = unit_triangular_solve(system, known)
        values, reads_s, reads_m = solved.split([v.shape[-1], e.shape[-1], e.shape[-1]], -1)
        scores = (q @ k.mT) * mixed
        query_s, query_m = q * prefix_a.unsqueeze(-1), q * from_m.unsqueeze(-1)
        write_s, write_m = k * mixed[..., -1, :, None], k * suffix_m.unsqueeze(-1)
        last_s, last_m = prefix_a[..., -1, None, None], from_m[..., -1, None, None]
        state, momentum = self.start_state()
        outputs = []
        for n in range(q.shape[0]):
            error = values[n] - reads_s[n] @ state - reads_m[n] @ momentum
            outputs.append(scores[n] @ error + query_s[n] @ state + query_m[n] @ momentum)
            state = last_s[n] * state + last_m[n] * momentum + write_s[n].mT @ error
            momentum = total_m[n][..., None, None] * momentum + write_m[n].mT @ error
        return from_chunks(torch.stack(outputs), self.sizes["T"], self.v.dtype), (state, momentum)


class _EvenGradient(torch.autograd.Function):
    """x [B, T, ...], whose gradient is contiguous: of others a compiler assumes strides that they do not have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].clone(memory_format=torch.contiguous_format)


class _UnitTriangularSolve(torch.autograd.Function):
    """x of L x = b, L [..., C, C] lower triangular with ones on its diagonal, b [..., C, D]; both contiguous.

    With y = L^-T dL/dx: dL/db = y and dL/dL = -y x^T below the diagonal.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, right: Tensor) -> Tensor:
        solution = torch.linalg.solve_triangular(matrix, right, upper=False, unitriangular=True).contiguous()
        ctx.save_for_backward(matrix, solution)
        return solution

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        matrix, solution = ctx.saved_tensors
        right = torch.linalg.solve_triangular(matrix.mT, grads[0], upper=True, unitriangular=True).contiguous()
        return -(right @ solution.mT).tril(-1), right


# An operator of its own since a compiler takes the results of torch's for contiguous, which they are not.
unit_triangular_solve = as_custom_op(_UnitTriangularSolve, ("right",))

momentum_delta_rule = Recurrence(MomentumDeltaRule, "momentum_delta_rule")
