"""Causal convolution and token shift: one window of the past, however the row is cut, packed or padded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_arch.ops.conv import causal_conv1d, naive_causal_conv1d, token_shift

TOLERANCE = 1e-5


def inputs(
    batch: int = 2, length: int = 11, channels: int = 5, width: int = 4, dtype=torch.float32
) -> dict[str, Tensor]:
    return {
        "x": torch.randn(batch, length, channels, dtype=dtype, requires_grad=True),
        "weight": torch.randn(channels, width, dtype=dtype, requires_grad=True),
        "bias": torch.randn(channels, dtype=dtype, requires_grad=True),
        "initial_state": torch.randn(batch, channels, width - 1, dtype=dtype, requires_grad=True),
    }


def close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def results(function, tensors: dict[str, Tensor], **options) -> list[Tensor]:
    """Outputs, final state and the gradients of a fixed random function of both."""
    y, state = function(**tensors, output_final_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    loss = sum((part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum() for part in (y, state))
    return [y, state, *torch.autograd.grad(loss, tuple(tensors.values()))]


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("length", [1, 2, 11])
@pytest.mark.parametrize("packed", [False, True])
def test_fast_equals_naive(activation, width, length, packed) -> None:
    tensors = inputs(length=length, width=width)
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 3], [5, 4, 5, 5, 5, 5, 5, 5, 5, 5, 9]])[:, :length]
    options = {"activation": activation, "segment_ids": segments if packed else None}
    for actual, expected in zip(
        results(causal_conv1d, tensors, **options), results(naive_causal_conv1d, tensors, **options), strict=True
    ):
        close(actual, expected)


def test_rows_that_fill_several_cache_blocks() -> None:
    tensors = inputs(batch=5, length=300, channels=512)
    for actual, expected in zip(results(causal_conv1d, tensors), results(naive_causal_conv1d, tensors), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_gradients_in_double_precision(activation) -> None:
    tensors = inputs(length=5, channels=2, dtype=torch.float64)
    segments = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])

    def call(x, weight, bias, state):
        return causal_conv1d(x, weight, bias, activation, state, segments, True)

    assert torch.autograd.gradcheck(call, tuple(tensors.values()))


def test_chunks_equal_the_whole_row() -> None:
    tensors = inputs(length=13)
    whole = results(causal_conv1d, tensors, activation="silu")

    def in_chunks(x, weight, bias, initial_state, output_final_state):
        state, outputs = initial_state, []
        for chunk in x.split([1, 2, 1, 5, 4], dim=1):
            y, state = causal_conv1d(chunk, weight, bias, "silu", state, output_final_state=True)
            outputs.append(y)
        return torch.cat(outputs, 1), state

    for actual, expected in zip(results(in_chunks, tensors), whole, strict=True):
        close(actual, expected)


def test_packed_documents_equal_separate_ones() -> None:
    tensors = inputs(batch=1, length=9)
    lengths = [2, 1, 6]
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]

    def separate(x, weight, bias, initial_state, output_final_state):
        outputs, state = [], initial_state
        for i, document in enumerate(x.split(lengths, dim=1)):
            y, state = causal_conv1d(document, weight, bias, None, initial_state if i == 0 else None, None, True)
            outputs.append(y)
        return torch.cat(outputs, 1), state

    packed = results(causal_conv1d, tensors, segment_ids=segments)
    # The last document alone reaches the state, so the first one's gradient also shows that nothing leaks.
    for actual, expected in zip(packed, results(separate, tensors), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("with_state", [False, True])
def test_final_state_of_a_short_row_ends_at_its_last_valid_token(with_state) -> None:
    tensors = inputs(batch=4, length=6)
    x, weight, state = tensors["x"], tensors["weight"], tensors["initial_state"] if with_state else None
    num_valid = torch.tensor([0, 1, 4, 6])
    _, actual = causal_conv1d(x, weight, initial_state=state, num_valid=num_valid, output_final_state=True)
    for row, length in enumerate(num_valid.tolist()):
        before = torch.zeros(5, 3) if state is None else state[row]
        expected = torch.cat([before, x[row, :length].T], dim=1)[:, -3:]
        assert torch.equal(actual[row], expected)


def test_final_state_with_documents_and_padding() -> None:
    tensors = inputs(batch=3, length=6)
    segments = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1]])
    options = {"segment_ids": segments, "num_valid": torch.tensor([3, 0, 2])}
    _, actual = causal_conv1d(**tensors, output_final_state=True, **options)
    _, expected = naive_causal_conv1d(**tensors, output_final_state=True, **options)
    assert torch.equal(actual, expected)


def test_causality_is_bit_exact() -> None:
    tensors = inputs(length=11)
    before, _ = causal_conv1d(**tensors, activation="silu")
    x = tensors.pop("x").detach().clone()
    x[:, 6] += 1.0
    after, _ = causal_conv1d(x, **tensors, activation="silu")
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6], after[:, 6])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_summed_in_fp32(dtype) -> None:
    tensors = inputs(length=20)
    x, state = tensors.pop("x").to(dtype), tensors.pop("initial_state").to(dtype)
    y, final = causal_conv1d(x, **tensors, activation="silu", initial_state=state, output_final_state=True)
    exact, _ = naive_causal_conv1d(x.float(), **tensors, activation="silu", initial_state=state.float())
    assert y.dtype == final.dtype == dtype
    assert torch.equal(y, exact.to(dtype)) or (y - exact).abs().max() < torch.finfo(dtype).eps * exact.abs().max()


def test_autocast_changes_nothing() -> None:
    tensors = inputs()
    expected = results(causal_conv1d, tensors, activation="silu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = results(causal_conv1d, tensors, activation="silu")
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    tensors = inputs()
    segments = torch.tensor([[0] * 4 + [1] * 7, [0] * 11])
    compiled = torch.compile(causal_conv1d, fullgraph=True)
    for actual, expected in zip(
        results(compiled, tensors, activation="silu", segment_ids=segments),
        results(causal_conv1d, tensors, activation="silu", segment_ids=segments),
        strict=True,
    ):
        close(actual, expected)


def test_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="activation: 'gelu'"):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(3, 4), activation="gelu")
    with pytest.raises(ValueError, match="weight: shape"):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(4, 4))


def test_token_shift_is_the_token_before() -> None:
    x, state = torch.randn(2, 5, 3), torch.randn(2, 3)
    y, final = token_shift(x, state, output_final_state=True)
    assert torch.equal(y, torch.cat([state[:, None], x[:, :-1]], 1)) and torch.equal(final, x[:, -1])
    y, _ = token_shift(x, state, torch.tensor([[0, 0, 1, 1, 1], [7, 7, 7, 7, 3]]))
    assert torch.equal(y[0], torch.stack([state[0], x[0, 0], torch.zeros(3), x[0, 2], x[0, 3]]))
    assert torch.equal(y[1, 4], torch.zeros(3)) and torch.equal(y[1, 0], state[1])
    _, final = token_shift(x, state, output_final_state=True, num_valid=torch.tensor([0, 3]))
    assert torch.equal(final, torch.stack([state[0], x[1, 2]]))
    _, final = token_shift(x, output_final_state=True, num_valid=torch.tensor([0, 5]))
    assert torch.equal(final, torch.stack([torch.zeros(3), x[1, 4]]))
