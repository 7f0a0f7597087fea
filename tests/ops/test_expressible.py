"""Published recurrences that have no op of their own, written with the ops: the same in fp64 to 1e-12."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_arch.ops.delta_rule import delta_rule, dplr_delta_rule
from hf_arch.ops.linear_attention import linear_attention
from tests.ops.recurrences import assert_close, with_gradients

B, T, H, K, V = 2, 37, 2, 4, 5
SCALE = K**-0.5


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64)


def unit(*shape: int) -> Tensor:
    return F.normalize(normal(*shape), dim=-1)


def heads() -> tuple[Tensor, Tensor, Tensor]:
    return unit(B, T, H, K), unit(B, T, H, K), normal(B, T, H, V)


def loop(advance, *arrays: Tensor, states: int = 1) -> Tensor:
    """Outputs [B, T, H, V] of advance(state..., arrays at t) -> (o, state...), states from zeros [B, H, K, V]."""
    state = [arrays[0].new_zeros(B, H, K, V) for _ in range(states)]
    outputs = []
    for tokens in zip(*(x.unbind(1) for x in arrays), strict=True):
        o, *state = advance(*state, *tokens)
        outputs.append(o)
    return torch.stack(outputs, 1)


def recall(state: Tensor, k: Tensor) -> Tensor:
    """S^T k: [B, H, K, V] and [B, H, K] to [B, H, V]."""
    return torch.einsum("bhkv,bhk->bhv", state, k)


def outer(k: Tensor, u: Tensor) -> Tensor:
    return k.unsqueeze(-1) * u.unsqueeze(-2)


def assert_equal(op, naive, inputs: tuple) -> None:
    """Outputs and gradients."""

    def as_op(f):
        return lambda *tensors, output_final_state: (f(*tensors), None)

    assert_close(with_gradients(as_op(op), inputs), with_gradients(as_op(naive), inputs), 1e-12)


def erase_and_write(q: Tensor, write: Tensor, v: Tensor, g: Tensor, erase: Tensor) -> Tensor:
    """S' = exp(g) S, u = v - S'^T erase, S = S' + write u^T, o = (scale q)^T S."""

    def advance(S, q, write, v, g, erase):
        S = g.exp().unsqueeze(-1) * S
        S = S + outer(write, v - recall(S, erase))
        return recall(S, SCALE * q), S

    return loop(advance, q, write, v, g, erase)


def test_a_decay_per_channel_with_the_delta_rule() -> None:
    """Kimi Delta Attention (2510.26692): write beta k, erase k after the decay."""
    q, k, v = heads()
    inputs = q, k, v, uniform(B, T, H, 1), -uniform(B, T, H, K)
    assert_equal(
        lambda q, k, v, beta, g: dplr_delta_rule(q, g, beta * k, v, g.exp() * k, -beta * k, scale=SCALE)[0],
        lambda q, k, v, beta, g: erase_and_write(q, beta * k, v, g, k),
        inputs,
    )


def test_separate_gates_for_erasing_and_writing() -> None:
    """Gated DeltaNet 2 (2605.22791): erase e * k, write w * v."""
    q, k, v = heads()
    inputs = q, k, v, -uniform(B, T, H, K), 2 * uniform(B, T, H, K), uniform(B, T, H, V)
    assert_equal(
        lambda q, k, v, g, e, w: dplr_delta_rule(q, g, k, w * v, g.exp() * e * k, -k, scale=SCALE)[0],
        lambda q, k, v, g, e, w: erase_and_write(q, k, w * v, g, e * k),
        inputs,
    )


def test_several_householder_steps_a_token() -> None:
    """Gated DeltaProduct (2502.10297): the delta rule over n micro steps a token, decay before the first, read last."""
    n = 3
    q, k, v = unit(B, T, H, K), unit(B, T, n, H, K), normal(B, T, n, H, V)
    inputs = q, k, v, 2 * uniform(B, T, n, H), -uniform(B, T, H)

    def naive(q, k, v, beta, g):
        def advance(S, q, k, v, beta, g):
            S = g.exp()[..., None, None] * S
            for j in range(n):
                S = S + outer(k[:, j], beta[:, j].unsqueeze(-1) * (v[:, j] - recall(S, k[:, j])))
            return recall(S, SCALE * q), S

        return loop(advance, q, k, v, beta, g)

    def op(q, k, v, beta, g):
        first = F.pad(g.unsqueeze(2), (0, 0, 0, n - 1)).flatten(1, 2)
        micro = (x.flatten(1, 2) for x in (k, v, beta))
        return delta_rule(q.repeat_interleave(n, 1), *micro, first)[0][:, n - 1 :: n]

    assert_equal(op, naive, inputs)


def test_erasing_from_the_state_before_the_decay() -> None:
    """Comba (2506.02475): u = beta (v - S_{t-1}^T p), S = exp(g) S_{t-1} + k u^T."""
    q, k, v = heads()
    inputs = q, k, v, unit(B, T, H, K), uniform(B, T, H, 1), -uniform(B, T, H, 1)

    def naive(q, k, v, p, beta, g):
        def advance(S, q, k, v, p, beta, g):
            S = g.exp().unsqueeze(-1) * S + outer(k, beta * (v - recall(S, p)))
            return recall(S, SCALE * q), S

        return loop(advance, q, k, v, p, beta, g)

    assert_equal(
        lambda q, k, v, p, beta, g: dplr_delta_rule(q, g.expand_as(q), beta * k, v, p, -beta * k, scale=SCALE)[0],
        naive,
        inputs,
    )


def test_writes_of_two_neighbouring_tokens() -> None:
    """Mamba-3 (2603.15569): S = alpha S + (1-lam) dt alpha B_{t-1} x_{t-1}^T + lam dt B_t x_t^T, by two calls."""
    inputs = normal(B, T, H, K), normal(B, T, H, K), normal(B, T, H, V), uniform(B, T, H), uniform(B, T, H, 1)

    def shifted(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 1, 0))[:, :-1]

    def naive(c, b, x, dt, lam):
        def advance(S, c, b, x, b_before, x_before, dt, lam):
            dt, alpha = dt.unsqueeze(-1), (-dt).exp().unsqueeze(-1)
            S = alpha.unsqueeze(-1) * S + outer((1 - lam) * dt * alpha * b_before, x_before) + outer(lam * dt * b, x)
            return recall(S, c), S

        return loop(advance, c, b, x, shifted(b), shifted(x), dt, lam)

    def op(c, b, x, dt, lam):
        step, alpha = dt.unsqueeze(-1), (-dt).exp().unsqueeze(-1)
        before = linear_attention(c, shifted(b), (1 - lam) * step * alpha * shifted(x), -dt, scale=1.0)[0]
        return before + linear_attention(c, b, lam * step * x, -dt, scale=1.0)[0]

    assert_equal(op, naive, inputs)


def test_products_and_readout_of_a_regularised_solve() -> None:
    """MesaNet (2506.05233): A = e^g A + beta k k^T, S = e^g S + beta k v^T; o = S^T x where (A + diag lam) x = q."""
    q, k, v = heads()
    beta, g, lam = uniform(B, T, H, 1), -uniform(B, T, H), 0.25 + uniform(H, K)
    A, S = q.new_zeros(B, H, K, K), q.new_zeros(B, H, K, V)
    solutions, outputs = [], []
    for q_t, k_t, v_t, beta_t, g_t in zip(*(x.unbind(1) for x in (q, k, v, beta, g)), strict=True):
        A = g_t.exp()[..., None, None] * A + outer(beta_t * k_t, k_t)
        S = g_t.exp()[..., None, None] * S + outer(beta_t * k_t, v_t)
        solutions.append(torch.linalg.solve(A + torch.diag_embed(lam), q_t))
        outputs.append(recall(S, solutions[-1]))
    x = torch.stack(solutions, 1)
    product, final = linear_attention(x, beta * k, k, g, scale=1.0, output_final_state=True)
    assert_close(product + lam * x, q, 1e-12)
    assert_close(final, A, 1e-12)
    assert_close(linear_attention(x, beta * k, v, g, scale=1.0)[0], torch.stack(outputs, 1), 1e-12)


def test_momentum_in_another_basis() -> None:
    """Momentum DeltaNet (2605.05838): u = v - S^T (a k), M = mu M + eta k u^T, S = a S + beta M.

    With Z = S - c M and c_t = beta_t + c_{t-1} a_t / mu_t the transition of [Z, M] is diagonal plus rank one. c grows
    without bound where a stays above mu, so this is for mu >= a only: elsewhere the recurrence needs an op of its own.
    """
    q, k, v = heads()
    a, beta, eta = (uniform(B, T, H, 1) for _ in range(3))
    a, mu = 0.5 + 0.4 * a, torch.full_like(a, 0.95)
    inputs = q, k, v, a, mu, beta, eta

    def naive(*inputs):
        def advance(S, M, q, k, v, a, mu, beta, eta):
            M = mu.unsqueeze(-1) * M + outer(eta * k, v - recall(S, a * k))
            S = a.unsqueeze(-1) * S + beta.unsqueeze(-1) * M
            return recall(S, SCALE * q), S, M

        return loop(advance, *inputs, states=2)

    def op(q, k, v, a, mu, beta, eta):
        c = [torch.zeros_like(beta[:, 0])]
        for beta_t, ratio in zip(beta.unbind(1), (a / mu).unbind(1), strict=True):
            c.append(beta_t + ratio * c[-1])
        before, c = torch.stack(c[:-1], 1), torch.stack(c[1:], 1)
        write = torch.cat([(beta - c) * eta * k, eta * k], -1)
        decay = torch.cat([a.log().expand_as(k), mu.log().expand_as(k)], -1)
        read, erase = torch.cat([q, c * q], -1), torch.cat([a * k, before * a * k], -1)
        return dplr_delta_rule(read, decay, write, v, erase, -write, scale=SCALE)[0]

    assert_equal(op, naive, inputs)
