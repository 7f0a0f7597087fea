"""Mamba-2's recurrence: chunks of matrix products, single steps and the plain loop agree, for any groups and decays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_arch.ops.ssd import ssd
from tests.ops.recurrences import (
    assert_close,
    check_bit_causality,
    check_continuation,
    check_padding,
    check_segments,
    random_segments,
    with_gradients,
)

B, H, P, N = 2, 4, 3, 5


def make_inputs(length: int, groups: int = 2, dtype: torch.dtype = torch.float32, strong: bool = False) -> tuple:
    """(x, dt, A, B, C, D); strong: a third of the log decays dt A near -50, a third of the steps 0."""
    step = torch.float64 if dtype == torch.float64 else torch.float32
    x, dt = torch.randn(B, length, H, P, dtype=dtype), torch.rand(B, length, H, dtype=step)
    A = -0.1 - torch.rand(H, dtype=step)
    if strong:
        dt = torch.where(dt < 0.3, 50 / A.abs().max() * (1 - dt), torch.where(dt > 0.7, 0.0, dt))
    return x, dt, A, *torch.randn(2, B, length, groups, N, dtype=dtype), torch.randn(H, dtype=step)


def make_state(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, H, P, N, dtype=dtype)


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 8, 9, 37])
def test_chunks_equal_naive(length, groups, strong) -> None:
    inputs = make_inputs(length, groups, strong=strong)
    for state, segments in ((make_state(), None), (make_state(), random_segments(B, length))):
        options = {"initial_state": state, "segment_ids": segments}
        chunks = with_gradients(lambda *args, **kwargs: ssd(*args, chunk_size=8, **kwargs), inputs, **options)
        assert_close(chunks, with_gradients(ssd.naive, inputs, **options), 1e-5)
    assert_close(ssd(*inputs, output_final_state=True), ssd.naive(*inputs, output_final_state=True), 1e-5)


def test_skip_weights_per_channel_or_none() -> None:
    *inputs, _ = make_inputs(9)
    for skip in ((), (torch.randn(H, P),)):
        assert_close(with_gradients(ssd, [*inputs, *skip]), with_gradients(ssd.naive, [*inputs, *skip]), 1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_properties_of_a_recurrence(groups) -> None:
    x, dt, A, *B_and_C, D = make_inputs(37, groups)
    inputs, state = (x, dt, *B_and_C), make_state()

    def op(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, **options) -> tuple:
        return ssd(x, dt, A, B, C, D, chunk_size=8, **options)

    check_continuation(op, inputs, state, list(range(38)), 1e-5)
    check_continuation(op, inputs, state, [0, 9, 10, 26, 37], 1e-5)
    check_segments(op, inputs, state, 1e-5)
    check_padding(op, inputs, state, 1e-5)
    check_bit_causality(op, inputs, at=19)


@pytest.mark.parametrize("length", [1, 21])
def test_states_stay_fp32(length) -> None:
    inputs, state = make_inputs(length, dtype=torch.bfloat16), make_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, final = ssd(*inputs, initial_state=state, output_final_state=True)
    _, expected = ssd.naive(*(x.float() for x in inputs), initial_state=state, output_final_state=True)
    assert y.dtype == torch.bfloat16 and final.dtype == torch.float32
    assert_close(final, expected, 1e-5)


def test_groups_must_divide_the_heads() -> None:
    x, dt, A, B_in, C_out, _ = make_inputs(3, groups=3)
    with pytest.raises(ValueError, match="groups: 3 is not allowed"):
        ssd(x, dt, A, B_in, C_out)


@pytest.mark.slow
def test_captured_graph_equals_eager() -> None:
    inputs, options = make_inputs(21), {"initial_state": make_state(), "segment_ids": random_segments(B, 21)}
    compiled = torch.compile(
        lambda *args, **kwargs: ssd(*args, chunk_size=8, **kwargs), fullgraph=True, backend="aot_eager"
    )
    assert_close(with_gradients(compiled, inputs, **options), with_gradients(ssd, inputs, **options), 1e-5)
