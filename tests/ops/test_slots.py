"""Attention over slots: both memories are one recurrence in every form, and ABC continues rightly from its state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_arch.ops.logsumexp import time_softmax
from hf_arch.ops.slots import abc_attention, gated_slot_attention
from tests.ops.recurrences import (
    assert_close,
    check_bit_causality,
    check_continuation,
    check_padding,
    check_segments,
    random_segments,
    with_gradients,
)
from tests.ops.test_native import needs_kernels

B, H, K, V, M = 2, 3, 4, 5, 6
OPS = {"gsa": gated_slot_attention, "abc": abc_attention}
NAIVE = {"gsa": gated_slot_attention.naive, "abc": abc_attention.naive}


def make_inputs(
    kind: str, length: int, strong: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple:
    """(q, k, v, s) and for GSA f; strong means gates down to -50 and at 0, or ABC's write logits in [-32, 32]."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    gate_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v = ((random(B, length, H, d) * 2 - 1).to(dtype) for d in (K, K, V))
    if kind == "abc":
        s = (random(B, length, H, M) * 2 - 1) * (32 if strong else 2)
        return q, k, v, s.to(gate_dtype)
    f = -0.5 * random(B, length, H, M)
    if strong:
        choice = random(B, length, H, M)
        f = torch.where(choice < 0.3, 100 * f, torch.where(choice > 0.8, 0.0, f))
    return q, k, v, (1 - f.exp()).to(gate_dtype), f.to(gate_dtype)


def make_state(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(B, H, *shape, generator=generator).to(dtype) for shape in ((K, M), (M, V)))
    if kind == "gsa":
        return keys, values
    return torch.randn(B, H, M, generator=generator).to(dtype), keys, values


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5, 33, 80])
@pytest.mark.parametrize("kind", OPS)
def test_chunk_equals_naive(kind: str, length: int, strong: bool) -> None:
    inputs = make_inputs(kind, length, strong)
    for segments in (None, random_segments(B, length)):
        for state in (None, make_state(kind)):
            common = {"initial_state": state, "segment_ids": segments}
            naive = with_gradients(NAIVE[kind], inputs, **common)
            assert_close(with_gradients(OPS[kind], inputs, **common), naive, 1e-5)
            assert_close(with_gradients(OPS[kind], inputs, chunk_size=16, **common), naive, 1e-5)


@pytest.mark.parametrize("kind", OPS)
def test_steps_equal_the_whole(kind: str) -> None:
    inputs, state = make_inputs(kind, 21), make_state(kind)
    check_continuation(OPS[kind], inputs, state, list(range(22)), 1e-5)
    check_continuation(OPS[kind], inputs, state, [0, 5, 6, 14, 21], 1e-5)


@pytest.mark.parametrize("kind", OPS)
def test_rows_properties(kind: str) -> None:
    op, state = OPS[kind], make_state(kind)
    check_segments(op, make_inputs(kind, 40), state, 1e-5)
    fill = (0.0, 0.0, 0.0, -torch.inf) if kind == "abc" else None
    check_padding(op, make_inputs(kind, 30), state, 1e-5, fill)
    check_padding(op, make_inputs(kind, 30), None, 1e-5, fill)
    for at in (13, 31, 32, 44):
        check_bit_causality(op, make_inputs(kind, 45), at)


def test_abc_is_a_softmax_over_time() -> None:
    """The slots as ABC defines them: one softmax over all earlier tokens per slot and step."""
    q, k, v, s = make_inputs("abc", 12, strong=True)
    o, state = abc_attention(q, k, v, s, scale=1.0, output_final_state=True)
    for t in range(12):
        weights = s[:, : t + 1].softmax(1)
        keys = torch.einsum("bthk,bthm->bhkm", k[:, : t + 1], weights)
        values = torch.einsum("bthv,bthm->bhmv", v[:, : t + 1], weights)
        p = torch.einsum("bhk,bhkm->bhm", q[:, t], keys).softmax(-1)
        assert_close(o[:, t], torch.einsum("bhm,bhmv->bhv", p, values), 1e-5)
    assert_close(state, (s.logsumexp(1), keys, values), 1e-5)


@pytest.mark.parametrize("kind", OPS)
def test_states_stay_fp32_under_autocast(kind: str) -> None:
    inputs = make_inputs(kind, 20, dtype=torch.bfloat16)
    for length in (20, 1):
        pieces = [x[:, :length] for x in inputs]
        with torch.autocast("cpu", torch.bfloat16):
            o, state = OPS[kind](*pieces, initial_state=make_state(kind), output_final_state=True)
        exact = [x.float() for x in pieces]
        expected = NAIVE[kind](*exact, initial_state=make_state(kind), output_final_state=True)
        assert o.dtype == torch.bfloat16 and all(x.dtype == torch.float32 for x in state)
        assert_close(o, expected[0], 2**-8)  # one rounding of the output
        assert_close(state, expected[1], 1e-5)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_no_gradient_reaches_the_document_before(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a document starts with a token that has no weight."""
    monkeypatch.setenv("HF_ARCH_BACKEND", backend)
    s, before = torch.randn(1, 4, 1, 3), torch.randn(1, 1, 3, requires_grad=True)
    s[:, :2] = -torch.inf
    weights, gates, total = time_softmax(s, before, torch.tensor([[1.0, 0.0, 1.0, 1.0]]))
    loss = (weights * torch.randn(1, 4, 1, 3)).sum() + gates[:, 2:].exp().sum() + total.sum()
    (grad,) = torch.autograd.grad(loss, before)
    assert not grad.any()


@needs_kernels
def test_threads_do_not_move_a_bit_of_a_running_softmax() -> None:
    s, keep, found = 5 * torch.randn(3, 40, 2, 300), (torch.rand(3, 40) > 0.1).float(), []
    before, threads = torch.randn(3, 2, 300), torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            leaves = [s.clone().requires_grad_(), before.clone().requires_grad_()]
            results = time_softmax(*leaves, keep)
            grads = torch.autograd.grad(sum((x.clamp(min=-90) ** 2).sum() for x in results), leaves)
            found.append([*results, *grads])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


@needs_kernels
def test_a_running_softmax_of_what_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    s = torch.randn(2, 6, 1, 5)
    s[0, 2, 0, 1], s[1, 3, 0, 2] = torch.nan, torch.inf
    found = time_softmax(s, None, None)
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    for one, other in zip(found[:2], time_softmax(s, None, None)[:2], strict=True):
        assert torch.equal(one.isnan(), other.isnan()) and one.isnan().any()
