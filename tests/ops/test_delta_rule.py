"""The delta rules: all forms are one recurrence, also for nearly parallel keys, strong gates and beta up to 2."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_arch.ops.delta_rule import delta_rule, dplr_delta_rule
from tests.ops.recurrences import (
    assert_close,
    check_bit_causality,
    check_continuation,
    check_padding,
    check_segments,
    random_segments,
    with_gradients,
)

B, H, K, V = 2, 3, 4, 5
KINDS = ("plain", "gated", "negative eigenvalues", "parallel keys", "strong gates", "a gate a channel")


def make_inputs(length: int, kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple:
    """(q, k, v, beta, g)."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (random(B, length, H, d) * 2 - 1 for d in (K, K, V))
    beta = random(B, length, H)
    g = None if kind == "plain" else -0.5 * random(B, length, H)
    if kind == "negative eigenvalues":
        beta = beta * 2
    elif kind == "parallel keys":
        k, beta = 0.05 * k + 1, 0.9 + 0.1 * beta
    elif kind == "a gate a channel":
        g = torch.where(random(B, length, H, K) < 0.1, -40.0, -0.5 * random(B, length, H, K))
    elif kind == "strong gates":
        choice = random(B, length, H)
        g = torch.where(choice < 0.3, 100 * g, torch.where(choice > 0.8, 0.0, g))
    k = F.normalize(k, dim=-1)
    gate_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return *(x.to(dtype) for x in (q, k, v)), beta.to(gate_dtype), None if g is None else g.to(gate_dtype)


def make_state(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, H, K, V, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("length", [1, 2, 5, 33, 80])
@pytest.mark.parametrize("kind", KINDS)
def test_chunk_equals_naive(kind: str, length: int) -> None:
    inputs = make_inputs(length, kind)
    for segments in (None, random_segments(B, length)):
        common = {"initial_state": make_state(), "segment_ids": segments}
        naive = with_gradients(delta_rule.naive, inputs, **common)
        assert_close(with_gradients(delta_rule, inputs, **common), naive, 1e-5)
        assert_close(with_gradients(delta_rule, inputs, chunk_size=16, **common), naive, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_whole(kind: str) -> None:
    inputs = make_inputs(21, kind)
    check_continuation(delta_rule, inputs, make_state(), list(range(22)), 1e-5)
    check_continuation(delta_rule, inputs, make_state(), [0, 5, 6, 14, 21], 1e-5)


@pytest.mark.parametrize("kind", ("plain", "gated", "a gate a channel"))
def test_rows_properties(kind: str) -> None:
    op = functools.partial(delta_rule, chunk_size=16)
    check_segments(op, make_inputs(40, kind), make_state(), 1e-5)
    check_padding(op, make_inputs(30, kind), make_state(), 1e-5)
    for at in (13, 31, 32, 44):
        check_bit_causality(op, make_inputs(45, kind), at)


def test_states_stay_fp32_under_autocast() -> None:
    inputs = make_inputs(20, "gated", torch.bfloat16)
    for length in (20, 1):
        pieces = [x[:, :length] for x in inputs]
        with torch.autocast("cpu", torch.bfloat16):
            o, state = delta_rule(*pieces, initial_state=make_state(), output_final_state=True)
        exact = [x.float() for x in pieces]
        expected = delta_rule.naive(*exact, initial_state=make_state(), output_final_state=True)
        assert o.dtype == torch.bfloat16 and state.dtype == torch.float32
        assert_close(o, expected[0], 2**-8)  # one rounding of the output
        assert_close(state, expected[1], 1e-5)


def test_a_rewritten_key_recalls_its_last_value() -> None:
    """With beta = 1 and orthonormal keys the state is a dictionary: what a plain sum of outer products cannot be."""
    keys = torch.eye(4)[[0, 1, 0, 2]].view(1, 4, 1, 4)
    values = torch.arange(1.0, 21.0).view(1, 4, 1, 5)
    _, state = delta_rule(keys, keys, values, torch.ones(1, 4, 1), scale=1.0, output_final_state=True)
    assert_close(state[0, 0], torch.stack([values[0, 2, 0], values[0, 1, 0], values[0, 3, 0], torch.zeros(5)]), 1e-6)


def make_dplr_inputs(length: int, strong: bool, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple:
    """(r, w, k, v, a, b) as RWKV7 makes them; strong decays go down to -50, far beyond that model's bound of -0.61."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    r, k, v = (random(B, length, H, d) * 2 - 1 for d in (K, K, V))
    kappa = F.normalize(random(B, length, H, K) - 0.5, dim=-1)
    w = -0.6 * random(B, length, H, K)
    if strong:
        w = torch.where(random(B, length, H, K) < 0.3, 80 * w, w)
    rate = random(B, length, H, K)
    w = w.to(torch.float64 if dtype == torch.float64 else torch.float32)
    r, k, v, a, b = (x.to(dtype) for x in (r, k, v, -kappa, kappa * rate))
    return r, w, k, v, a, b


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5, 33, 80])
def test_dplr_chunk_equals_naive(length: int, strong: bool) -> None:
    inputs = make_dplr_inputs(length, strong)
    for segments in (None, random_segments(B, length)):
        common = {"initial_state": make_state(), "segment_ids": segments}
        naive = with_gradients(dplr_delta_rule.naive, inputs, **common)
        assert_close(with_gradients(dplr_delta_rule, inputs, **common), naive, 1e-5)
        assert_close(with_gradients(dplr_delta_rule, inputs, chunk_size=32, **common), naive, 1e-5)


def test_dplr_rows_properties() -> None:
    state = make_state()
    for cuts in (list(range(22)), [0, 5, 6, 14, 21]):
        check_continuation(dplr_delta_rule, make_dplr_inputs(21, False), state, cuts, 1e-5)
    check_segments(dplr_delta_rule, make_dplr_inputs(40, False), state, 1e-5)
    check_padding(dplr_delta_rule, make_dplr_inputs(30, False), state, 1e-5)
    for at in (13, 31, 32, 44):
        check_bit_causality(dplr_delta_rule, make_dplr_inputs(45, False), at)


def test_the_delta_rule_is_a_dplr_delta_rule() -> None:
    q, k, v, beta, g = make_inputs(20, "gated")
    decay = g.exp().unsqueeze(-1)
    strength = beta.unsqueeze(-1)
    general = dplr_delta_rule(q, g.unsqueeze(-1).expand_as(k), strength * k, v, -decay * k, strength * k, scale=0.5)
    assert_close(general[0], delta_rule(q, k, v, beta, g, scale=0.5)[0], 1e-5)
