"""Mamba's selective scan: the fused operator, the single step and any cutting of the row equal the plain recurrence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_arch.ops import selective_scan as module
from hf_arch.ops.selective_scan import selective_scan
from tests.ops.recurrences import (
    assert_close,
    check_bit_causality,
    check_continuation,
    check_padding,
    check_segments,
    random_segments,
    with_gradients,
)

B, E, N = 2, 5, 3


def make_inputs(length: int, dtype: torch.dtype = torch.float32, strong: bool = False) -> tuple[Tensor, ...]:
    """(x, dt, A, B, C, D); strong: a third of the log decays dt A near -50, a third of the steps 0."""
    step = torch.float64 if dtype == torch.float64 else torch.float32
    x, dt = torch.randn(B, length, E, dtype=dtype), torch.rand(B, length, E, dtype=step)
    A = -0.1 - 2 * torch.rand(E, N, dtype=step)
    if strong:
        dt = torch.where(dt < 0.3, 50 / A.abs().max() * (1 - dt), torch.where(dt > 0.7, 0.0, dt))
    return x, dt, A, *torch.randn(2, B, length, N, dtype=dtype), torch.randn(E, dtype=step)


def over_time(inputs: tuple[Tensor, ...]):
    """The scan with its parameters fixed, and the tensors that have a time axis."""
    x, dt, A, B_in, C_out, D = inputs
    return lambda x, dt, B, C, **options: selective_scan(x, dt, A, B, C, D, **options), (x, dt, B_in, C_out)


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("length", [2, 7, 8, 21])
def test_fast_equals_naive(length, strong) -> None:
    inputs = make_inputs(length, strong=strong)
    for tensors in (inputs, inputs[:5]):
        for state in (None, torch.randn(B, E, N)):
            for segments in (None, random_segments(B, length)):
                options = {"initial_state": state, "segment_ids": segments}
                fast = with_gradients(selective_scan, tensors, **options)
                assert_close(fast, with_gradients(selective_scan.naive, tensors, **options), 1e-5)


def test_one_token_equals_naive() -> None:
    inputs, state = make_inputs(1), torch.randn(B, E, N)
    naive = with_gradients(selective_scan.naive, inputs, initial_state=state)
    assert_close(with_gradients(selective_scan, inputs, initial_state=state), naive, 1e-5)
    assert_close(selective_scan(*inputs)[0], selective_scan.naive(*inputs)[0], 1e-5)


def test_properties_of_a_recurrence() -> None:
    scan, inputs = over_time(make_inputs(21))
    state = torch.randn(B, E, N)
    check_continuation(scan, inputs, state, list(range(22)), 1e-5)
    check_continuation(scan, inputs, state, [0, 9, 10, 13, 21], 1e-5)
    check_segments(scan, inputs, state, 1e-5)
    check_padding(scan, inputs, state, 1e-5)
    check_bit_causality(scan, inputs, at=11)


def test_no_grad_changes_nothing() -> None:
    inputs = [tensor.requires_grad_() for tensor in make_inputs(21)]
    with_graph = selective_scan(*inputs, output_final_state=True)
    with torch.no_grad():
        without = selective_scan(*inputs, output_final_state=True)
    assert all(torch.equal(a, b) for a, b in zip(with_graph, without, strict=True))


@pytest.mark.parametrize("length", [1, 21])
def test_states_stay_fp32(length) -> None:
    inputs, state = make_inputs(length), torch.randn(B, E, N)
    exact = with_gradients(selective_scan, inputs, initial_state=state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(with_gradients(selective_scan, inputs, initial_state=state), exact, 0.0)
    low = make_inputs(length, torch.bfloat16)
    y, final = selective_scan(*low, initial_state=state, output_final_state=True)
    _, expected = selective_scan.naive(*(x.float() for x in low), initial_state=state, output_final_state=True)
    assert y.dtype == torch.bfloat16 and final.dtype == torch.float32
    assert_close(final, expected, 1e-5)


def test_operator_contract() -> None:
    """Schema, meta implementation and autograd registration agree with what the operator does."""
    inputs = [tensor.requires_grad_() for tensor in make_inputs(11)]
    torch.library.opcheck(module._scan, (*inputs, torch.randn(B, N, E), None, True))
    torch.library.opcheck(module._scan, (*inputs[:5], None, None, torch.ones(B, 11), True))


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    inputs, options = make_inputs(21), {"initial_state": torch.randn(B, E, N), "segment_ids": random_segments(B, 21)}
    compiled = torch.compile(selective_scan, fullgraph=True)
    assert_close(with_gradients(compiled, inputs, **options), with_gradients(selective_scan, inputs, **options), 1e-5)
