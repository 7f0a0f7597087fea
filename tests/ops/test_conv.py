"""Causal convolution and token shift: one window of the past, however the row is cut, packed or padded."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from hf_arch.ops.conv import causal_conv1d, naive_causal_conv1d, token_shift
from tests.ops.recurrences import (
    assert_close,
    check_bit_causality,
    check_continuation,
    check_segments,
    random_segments,
    with_gradients,
)

B, C, W = 2, 5, 4


def make_inputs(length: int, width: int = W, channels: int = C, batch: int = B, dtype=None) -> tuple[Tensor, ...]:
    """(x, weight, bias)."""
    shapes = (batch, length, channels), (channels, width), (channels,)
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


def make_state(batch: int = B, width: int = W, dtype=None) -> Tensor:
    return torch.randn(batch, C, width - 1, dtype=dtype)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("length", [1, 2, 11])
def test_fast_equals_naive(activation, width, length) -> None:
    inputs = make_inputs(length, width)
    for state in (None, make_state(width=width)):
        for segments in (None, random_segments(B, length)):
            options = {"activation": activation, "segment_ids": segments, "initial_state": state}
            fast = with_gradients(causal_conv1d, inputs, **options)
            assert_close(fast, with_gradients(naive_causal_conv1d, inputs, **options), 1e-5)


def test_width_one_remembers_nothing() -> None:
    x, weight, bias = make_inputs(5, width=1)
    y, state = causal_conv1d(x, weight, bias, output_final_state=True, segment_ids=random_segments(B, 5))
    assert_close(y, x * weight.T + bias, 1e-6)
    assert state.shape == (B, C, 0)


def test_rows_that_fill_several_cache_blocks() -> None:
    inputs = make_inputs(300, channels=512, batch=5)
    naive = with_gradients(naive_causal_conv1d, inputs, activation="silu")
    assert_close(with_gradients(causal_conv1d, inputs, activation="silu"), naive, 1e-5)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_gradients_in_double_precision(activation) -> None:
    inputs, state = make_inputs(5, dtype=torch.float64), make_state(dtype=torch.float64)
    options = {"activation": activation, "segment_ids": random_segments(B, 5), "output_final_state": True}

    def conv(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple:
        return causal_conv1d(x, weight, bias, initial_state=state, **options)

    assert torch.autograd.gradcheck(conv, [tensor.requires_grad_() for tensor in (*inputs, state)])


@pytest.mark.parametrize("activation", [None, "silu"])
def test_properties_of_a_recurrence(activation) -> None:
    x, weight, bias = make_inputs(13)
    conv = functools.partial(causal_conv1d, weight=weight, bias=bias, activation=activation)
    check_continuation(conv, [x], make_state(), list(range(14)), 1e-5)
    check_continuation(conv, [x], make_state(), [0, 1, 3, 4, 9, 13], 1e-5)
    check_segments(conv, [x], make_state(), 1e-5)
    check_bit_causality(conv, [x], at=6)


@pytest.mark.parametrize("with_state", [False, True])
def test_final_state_of_a_short_row_ends_at_its_last_valid_token(with_state) -> None:
    x, weight, _ = make_inputs(6, batch=4)
    state = make_state(batch=4) if with_state else None
    num_valid = torch.tensor([0, 1, 4, 6])
    _, actual = causal_conv1d(x, weight, initial_state=state, num_valid=num_valid, output_final_state=True)
    for row, length in enumerate(num_valid.tolist()):
        before = torch.zeros(C, W - 1) if state is None else state[row]
        expected = torch.cat([before, x[row, :length].T], dim=1)[:, -3:]
        assert torch.equal(actual[row], expected)


def test_final_state_with_documents_and_padding() -> None:
    options = {
        "segment_ids": torch.tensor([[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1]]),
        "num_valid": torch.tensor([3, 0, 2]),
        "initial_state": make_state(batch=3),
        "output_final_state": True,
    }
    inputs = make_inputs(6, batch=3)
    _, actual = causal_conv1d(*inputs, **options)
    _, expected = naive_causal_conv1d(*inputs, **options)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_summed_in_fp32(dtype) -> None:
    x, weight, bias = make_inputs(20)
    x, state = x.to(dtype), make_state().to(dtype)
    y, final = causal_conv1d(x, weight, bias, "silu", initial_state=state, output_final_state=True)
    exact, _ = naive_causal_conv1d(x.float(), weight, bias, "silu", initial_state=state.float())
    assert y.dtype == final.dtype == dtype
    # One rounding, at the end: half a unit in the last place.
    assert ((y - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()


def test_autocast_changes_nothing() -> None:
    inputs = make_inputs(11)
    expected = with_gradients(causal_conv1d, inputs, activation="silu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(with_gradients(causal_conv1d, inputs, activation="silu"), expected, 0.0)


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    inputs, options = make_inputs(11), {"activation": "silu", "segment_ids": random_segments(B, 11)}
    compiled = torch.compile(causal_conv1d, fullgraph=True)
    assert_close(with_gradients(compiled, inputs, **options), with_gradients(causal_conv1d, inputs, **options), 1e-5)


def test_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="activation: 'gelu'"):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(3, 4), activation="gelu")
    with pytest.raises(ValueError, match="weight: shape"):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(4, 4))


def test_token_shift_is_the_token_before() -> None:
    x, state = torch.randn(2, 5, 3), torch.randn(2, 3)
    y, final = token_shift(x, initial_state=state, output_final_state=True)
    assert torch.equal(y, torch.cat([state[:, None], x[:, :-1]], 1)) and torch.equal(final, x[:, -1])
    y, _ = token_shift(x, initial_state=state, segment_ids=torch.tensor([[0, 0, 1, 1, 1], [7, 7, 7, 7, 3]]))
    assert torch.equal(y[0], torch.stack([state[0], x[0, 0], torch.zeros(3), x[0, 2], x[0, 3]]))
    assert torch.equal(y[1, 4], torch.zeros(3)) and torch.equal(y[1, 0], state[1])
    _, final = token_shift(x, initial_state=state, output_final_state=True, num_valid=torch.tensor([0, 3]))
    assert torch.equal(final, torch.stack([state[0], x[1, 2]]))
    _, final = token_shift(x, output_final_state=True, num_valid=torch.tensor([0, 5]))
    assert torch.equal(final, torch.stack([torch.zeros(3), x[1, 4]]))
