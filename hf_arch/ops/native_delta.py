r"""The delta rule and its relatives with a diagonal plus rank-one transition by a C kernel that walks through time.

    z_t = S_{t-1}^T a_t      S_t = D_t S_{t-1} + b_t z_t^T + k_t v_t^T                            o_t = S_t^T q_t
    without a and b          S_t = D_t S_{t-1} + k_t u_t^T      u_t = beta_t (v_t - D_t S_{t-1}^T k_t)

A pass over the state takes four steps: it writes what the four before left and reads with all four, whose sums stay in
registers. What these read of each other are scores of four by four, with products of decays in [0, 1] alone, and z and
u follow from them one step after another. Backwards, with R_t the gradient of S_t from later
steps and G_t = R_t + q_t dL/do_t^T that with the step's own reading,

    dL/dk = G v        dL/db = G z        dL/dv = G^T k        dL/dz = G^T b        dL/dS_{t-1} = D G + a dL/dz^T
    dL/dq = S dL/do    dL/da = S_{t-1} dL/dz

where the first line needs R alone, which is walked backwards, and the second S alone, which is walked forwards again: z
is kept. R is walked twice, with values in the lanes of vectors for dL/dv and dL/dz, and with keys for dL/dk and dL/db:
sums over lanes would cost more. The gradient of log decays is as in `vector_decay`, from sum_v S R: see
`ops/kernels/delta_rule.c`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .custom_op import manual_backward
from .native import Kernels, Pointer, Struct, contiguous, fields, must_have_memory

KERNELS = Kernels("delta_rule.c")


class _Delta(Struct):
    """What both kernels read, as `ops/kernels/delta_rule.c` has it."""

    _fields_ = fields(
        "batch length heads keys values decays unit threads", "q k a b beta g v keep", doubles="scale eps"
    )


class _Gradients(Struct):
    _fields_ = fields("", "state q k a b beta g v recalled")


class NativeDelta(torch.autograd.Function):
    """q, k [B, T, H, K], v [B, T, H, V], keep [B, T] or None, state [B, H, K, V]; a, b and a log decay g [B, T, H, K]
    without beta, or beta [B, T, H] and g [B, T, H], [B, T, H, K] or None without a and b. All fp32 on a CPU, to
    o [B, T, H, V] and the final state. scale is that of q; with `unit_eps` q and k are divided by
    sqrt(sum(x^2) + unit_eps) first, where those of None are as they are.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        beta: Tensor | None,
        g: Tensor | None,
        keep: Tensor | None,
        v: Tensor,
        state: Tensor,
        scale: float = 1.0,
        unit_eps: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        kernels = KERNELS.loaded()
        initial, final = state.contiguous(), state.new_empty(state.shape)
        o, kept = v.new_empty(v.shape), v.new_empty(v.shape)
        ctx.options = scale, unit_eps
        delta = _delta(q, k, a, b, beta, g, keep, v, *ctx.options)
        results = Pointer(final), Pointer(o), Pointer(kept)
        must_have_memory(kernels.delta_rule(ctypes.byref(delta), Pointer(initial), *results))
        ctx.save_for_backward(q, k, a, b, beta, g, keep, v, state, kept)
        return o, final

    @staticmethod
    @manual_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *given, state, kept = ctx.saved_tensors
        q, _, a, b, beta, g, _, v = given
        kernels = KERNELS.loaded()
        initial, grad_o, grad_final = contiguous(state, *grads)
        grad_state, grad_q, grad_k, grad_a, grad_v = (x.new_empty(x.shape) for x in (state, q, q, q, v))
        grad_b, grad_beta, of_recalled = (
            None if x is None else torch.empty(x.shape, dtype=x.dtype) for x in (b, beta, None if b is None else v)
        )
        delta = _delta(*given, *ctx.options)
        grad_g = None if g is None else torch.empty(g.shape, dtype=g.dtype)
        to = _Gradients(grad_state, grad_q, grad_k, grad_a, grad_b, grad_beta, grad_g, grad_v, of_recalled)
        arguments = Pointer(initial), Pointer(grad_final), Pointer(grad_o), Pointer(kept), ctypes.byref(to)
        must_have_memory(kernels.delta_rule_backward(ctypes.byref(delta), *arguments))
        of_a = None if a is None else grad_a
        return grad_q, grad_k, of_a, grad_b, grad_beta, grad_g, None, grad_v, grad_state, None, None


def _delta(
    q: Tensor,
    k: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    beta: Tensor | None,
    g: Tensor | None,
    keep: Tensor | None,
    v: Tensor,
    scale: float,
    unit_eps: float | None,
) -> _Delta:
    decays = 0 if g is None else 1 if g.dim() == 3 else g.shape[-1]
    numbers = decays, int(unit_eps is not None), torch.get_num_threads(), float(scale), float(unit_eps or 0.0)
    return _Delta(*q.shape, v.shape[-1], *numbers, *contiguous(q, k, k if a is None else a, b, beta, g, v, keep))
