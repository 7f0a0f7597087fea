"""Gated linear attention: the three forms are one recurrence, for every kind of decay and however strong."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from hf_arch.ops.linear_attention import linear_attention
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
DECAYS = ("none", "constant", "scalar", "vector", "bonus")


def make_inputs(
    length: int, decay: str, dtype: torch.dtype = torch.float32, strong: bool = False, seed: int = 0
) -> tuple:
    """(q, k, v, g) and the options of the op; strong decays have 30 % of the log decays near -50 and 20 % exactly 0."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (random(B, length, H, d) * 2 - 1 for d in (K, K, V))
    shapes = {"none": None, "constant": (H,), "scalar": (B, length, H)}
    shape = shapes.get(decay, (B, length, H, K))
    g = None
    if shape is not None:
        g = -0.5 * random(*shape)
        if strong:
            choice = random(*shape)
            g = torch.where(choice < 0.3, 100 * g, torch.where(choice > 0.8, 0.0, g))
        g = g.to(torch.float64 if dtype == torch.float64 else torch.float32)
    options = {"bonus": random(H, K).to(dtype)} if decay == "bonus" else {}
    return (q.to(dtype), k.to(dtype), v.to(dtype), g), options


def make_state(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, H, K, V, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5, 33, 80])
@pytest.mark.parametrize("decay", DECAYS)
def test_chunk_equals_naive(decay: str, length: int, strong: bool) -> None:
    inputs, options = make_inputs(length, decay, strong=strong)
    for segments in (None, random_segments(B, length)):
        common = {"initial_state": make_state(), "segment_ids": segments, **options}
        naive = with_gradients(linear_attention.naive, inputs, **common)
        assert_close(with_gradients(linear_attention, inputs, **common), naive, 1e-5)
        assert_close(with_gradients(linear_attention.chunk, inputs, chunk_size=16, **common), naive, 1e-5)


@pytest.mark.parametrize("decay", ("vector", "bonus"))
def test_groups_of_rows_do_not_matter(decay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large batches are worked through in groups; here every row is one."""
    monkeypatch.setattr("hf_arch.ops.vector_decay.GROUP_VALUES", 1)
    inputs, options = make_inputs(20, decay)
    common = {"initial_state": make_state(), "segment_ids": random_segments(B, 20), **options}
    naive = with_gradients(linear_attention.naive, inputs, **common)
    assert_close(with_gradients(linear_attention, inputs, **common), naive, 1e-5)


@pytest.mark.parametrize("decay", DECAYS)
def test_steps_equal_the_whole(decay: str) -> None:
    inputs, options = make_inputs(21, decay)
    if decay == "constant":  # a gate without a time axis cannot be cut in pieces
        inputs = (*inputs[:3], inputs[3].expand(B, 21, H).contiguous())
    op = functools.partial(linear_attention, **options)
    check_continuation(op, inputs, make_state(), list(range(22)), 1e-5)
    check_continuation(op, inputs, make_state(), [0, 5, 6, 14, 21], 1e-5)


@pytest.mark.parametrize("decay", ("none", "scalar", "vector", "bonus"))
def test_segments_equal_separate_documents(decay: str) -> None:
    inputs, options = make_inputs(40, decay)
    check_segments(functools.partial(linear_attention, chunk_size=16, **options), inputs, make_state(), 1e-5)


@pytest.mark.parametrize("decay", ("none", "scalar", "vector", "bonus"))
def test_padding_changes_nothing(decay: str) -> None:
    inputs, options = make_inputs(30, decay)
    check_padding(functools.partial(linear_attention, chunk_size=16, **options), inputs, make_state(), 1e-5)


@pytest.mark.parametrize("decay", ("none", "scalar", "vector", "bonus"))
def test_earlier_outputs_stay_bit_equal(decay: str) -> None:
    inputs, options = make_inputs(45, decay)
    for at in (13, 31, 32, 44):
        check_bit_causality(functools.partial(linear_attention, chunk_size=16, **options), inputs, at)


@pytest.mark.parametrize("decay", DECAYS)
def test_states_stay_fp32_under_autocast(decay: str) -> None:
    inputs, options = make_inputs(20, decay)
    half = [None if x is None else x.bfloat16() if i < 3 else x for i, x in enumerate(inputs)]
    for length in (20, 1):
        pieces = [x if x is None or x.dim() == 1 else x[:, :length] for x in half]
        with torch.autocast("cpu", torch.bfloat16):
            o, state = linear_attention(*pieces, initial_state=make_state(), output_final_state=True, **options)
        exact = [x if x is None else x.float() for x in pieces]
        expected = linear_attention.naive(*exact, initial_state=make_state(), output_final_state=True, **options)
        assert o.dtype == torch.bfloat16 and state.dtype == torch.float32
        assert_close(o, expected[0], 2**-8)  # one rounding of the output
        assert_close(state, expected[1], 1e-5)


def test_wrong_arguments_are_named() -> None:
    (q, k, v, _), _ = make_inputs(4, "none")
    with pytest.raises(ValueError, match=r"g: shape \(2, 4\) is not allowed"):
        linear_attention(q, k, v, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="chunk_size: 24 is not allowed; it must be a power of two"):
        linear_attention(q, k, v, chunk_size=24)


@pytest.mark.parametrize("decay", ("scalar", "vector"))
def test_shapes_are_inferred_on_the_meta_device(decay: str) -> None:
    inputs, options = make_inputs(20, decay)
    o, state = linear_attention(*(x.to("meta") for x in inputs), output_final_state=True, **options)
    assert o.shape == (B, 20, H, V) and state.shape == (B, H, K, V) and o.device.type == "meta"
