"""S4D: chunks, single steps, the plain recurrence and the long convolution are one linear system."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from hf_arch.ops.diagonal_ssm import diagonal_ssm, discretise
from tests.ops.recurrences import (
    assert_close,
    check_bit_causality,
    check_continuation,
    check_segments,
    random_segments,
    with_gradients,
)

B, D, M = 2, 3, 4
TOLERANCE = 2e-5


def make_inputs(length: int, kind: str = "complex", dtype: torch.dtype = torch.float32, strong: bool = False) -> tuple:
    """(u, log_dt, A_re, A_im, C, B, D); strong: steps up to dt A = -50."""
    numbers = (2,) if kind == "complex" else ()
    log_dt = torch.empty(D, dtype=dtype).uniform_(math.log(1e-3), math.log(1e-1))
    A_re = -0.5 - torch.rand(D, M, dtype=dtype)
    if strong:
        log_dt[0] = math.log(50.0)
    A_im = math.pi * torch.arange(M, dtype=dtype).repeat(D, 1) if kind == "complex" else None
    C, B_in = torch.randn(2, D, M, *numbers, dtype=dtype)
    return torch.randn(B, length, D, dtype=dtype), log_dt, A_re, A_im, C, B_in, torch.randn(D, dtype=dtype)


def make_state(kind: str = "complex", batch: int = B, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, D, M, *((2,) if kind == "complex" else ()), dtype=dtype)


def over_time(parameters: tuple, **fixed):
    """The op with its parameters fixed."""
    return lambda u, **options: diagonal_ssm(u, *parameters, **fixed, **options)


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("kind", ["complex", "real"])
@pytest.mark.parametrize("length", [1, 2, 8, 21, 32])
def test_chunks_equal_naive(length, kind, strong) -> None:
    inputs = make_inputs(length, kind, strong=strong)
    for segments in (None, random_segments(B, length)):
        options = {"initial_state": make_state(kind), "segment_ids": segments}
        fast = with_gradients(functools.partial(diagonal_ssm, chunk_size=8), inputs, **options)
        assert_close(fast, with_gradients(diagonal_ssm.naive, inputs, **options), TOLERANCE)
    bare = (*inputs[:5], None, None)
    fast = diagonal_ssm(*bare, chunk_size=8, output_final_state=True)
    assert_close(fast, diagonal_ssm.naive(*bare, output_final_state=True), TOLERANCE)


def test_equals_the_convolution_with_its_kernel() -> None:
    u, log_dt, A_re, A_im, C, B_in, skip = make_inputs(50, dtype=torch.float64)
    y, _ = diagonal_ssm(u, log_dt, A_re, A_im, C, B_in, skip, chunk_size=16)
    A = torch.complex(A_re, A_im)
    decay = torch.exp(log_dt.exp()[:, None] * A)
    weights = torch.view_as_complex(C) * (decay - 1) / A * torch.view_as_complex(B_in)
    kernel = 2 * (weights.unsqueeze(-1) * decay.unsqueeze(-1) ** torch.arange(50)).sum(1).real  # [D,T]
    spectrum = torch.fft.rfft(u, 100, dim=1) * torch.fft.rfft(kernel, 100).T
    assert_close(y, torch.fft.irfft(spectrum, 100, dim=1)[:, :50] + skip * u, 1e-10)


@pytest.mark.parametrize("kind", ["complex", "real"])
def test_properties_of_a_recurrence(kind) -> None:
    u, *parameters = make_inputs(37, kind)
    op, state = over_time(parameters, chunk_size=8), make_state(kind)
    check_continuation(op, [u], state, list(range(38)), TOLERANCE)
    check_continuation(op, [u], state, [0, 9, 10, 26, 37], TOLERANCE)
    check_segments(op, [u], state, TOLERANCE)
    check_bit_causality(op, [u], at=19)


@pytest.mark.parametrize("packed", [False, True])
def test_final_state_ends_at_the_last_valid_token(packed) -> None:
    u, *parameters = make_inputs(21)
    u = torch.randn(5, 21, D)
    options = {
        "num_valid": torch.tensor([0, 1, 8, 13, 21]),
        "initial_state": make_state(batch=5),
        "segment_ids": random_segments(5, 21) if packed else None,
        "output_final_state": True,
    }
    y, state = diagonal_ssm(u, *parameters, chunk_size=8, **options)
    y_naive, state_naive = diagonal_ssm.naive(u, *parameters, **options)
    valid = torch.arange(21) < options["num_valid"][:, None]
    assert_close((y[valid], state), (y_naive[valid], state_naive), TOLERANCE)


def test_padding_in_front_without_a_state_is_a_no_op() -> None:
    u, *parameters = make_inputs(21)
    y, state = diagonal_ssm(u, *parameters, output_final_state=True)
    padded = torch.cat([torch.zeros(B, 7, D), u], dim=1)
    y_padded, state_padded = diagonal_ssm(padded, *parameters, output_final_state=True)
    assert_close((y_padded[:, 7:], state_padded), (y, state), TOLERANCE)


def test_small_steps_keep_their_precision() -> None:
    """b = (exp(dt A) - 1) / A tends to dt B; the difference would lose it."""
    _, log_dt, A_re, A_im, _, B_in, _ = make_inputs(1)
    log_dt = log_dt - 10.0
    single = discretise(log_dt, A_re, A_im, B_in)[2]
    double = discretise(log_dt.double(), A_re.double(), A_im.double(), B_in.double())[2]
    assert ((single - double).abs() <= 1e-6 * double.abs()).all()


@pytest.mark.parametrize("length", [1, 21])
def test_states_stay_fp32(length) -> None:
    u, *parameters = make_inputs(length)
    u, state = u.bfloat16(), make_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, final = diagonal_ssm(u, *parameters, initial_state=state, output_final_state=True)
    _, expected = diagonal_ssm.naive(u.float(), *parameters, initial_state=state, output_final_state=True)
    assert y.dtype == torch.bfloat16 and final.dtype == torch.float32
    assert_close(final, expected, TOLERANCE)


@pytest.mark.slow
def test_captured_graph_equals_eager() -> None:
    inputs, options = make_inputs(21), {"initial_state": make_state()}
    compiled = torch.compile(functools.partial(diagonal_ssm, chunk_size=8), fullgraph=True, backend="aot_eager")
    assert_close(
        with_gradients(compiled, inputs, **options), with_gradients(diagonal_ssm, inputs, **options), TOLERANCE
    )
