"""HGRN's recurrence: plain steps, chunks side by side and single tokens are one recurrence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_arch.ops import elementwise
from hf_arch.ops.elementwise import hgrn_scan
from tests.ops.recurrences import (
    assert_close,
    check_bit_causality,
    check_continuation,
    check_padding,
    check_segments,
    random_segments,
    with_gradients,
)

B, D = 2, 5


def make_inputs(length: int, dtype: torch.dtype = torch.float32, strong: bool = False) -> tuple[Tensor, Tensor]:
    """(i, f); strong: a third of the gates at e^-50 and a third at exactly 1."""
    i, f = torch.randn(B, length, D, dtype=dtype), torch.rand(B, length, D, dtype=torch.float64)
    if strong:
        f = torch.where(f < 0.3, torch.exp(-50 * f), torch.where(f > 0.7, 1.0, f))
    return i, f.to(torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.fixture(params=["steps", "chunks"])
def form(request, monkeypatch) -> str:
    """Both ways through the row, whatever its size."""
    monkeypatch.setattr(elementwise, "CHUNKED_LENGTH", 1 << 30 if request.param == "steps" else 0)
    monkeypatch.setattr(elementwise, "CHUNK", 8)
    return request.param


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("length", [1, 2, 8, 9, 16, 37])
def test_fast_equals_naive(form, length, strong) -> None:
    inputs = make_inputs(length, strong=strong)
    for state in (None, torch.randn(B, D)):
        for segments in (None, random_segments(B, length)):
            options = {"initial_state": state, "segment_ids": segments}
            if length == 1 and state is None:
                continue  # the only gate multiplies nothing
            assert_close(
                with_gradients(hgrn_scan, inputs, **options), with_gradients(hgrn_scan.naive, inputs, **options), 1e-5
            )


def test_one_token_without_a_state_is_its_input() -> None:
    i, f = make_inputs(1)
    h, state = hgrn_scan(i, f, output_final_state=True)
    assert torch.equal(h, i) and torch.equal(state, i[:, 0])


def test_properties_of_a_recurrence(form) -> None:
    inputs, state = make_inputs(37), torch.randn(B, D)
    check_continuation(hgrn_scan, inputs, state, list(range(38)), 1e-5)
    check_continuation(hgrn_scan, inputs, state, [0, 9, 10, 12, 28, 37], 1e-5)
    check_segments(hgrn_scan, inputs, state, 1e-5)
    check_padding(hgrn_scan, inputs, state, 1e-5, fill=[0.0, 1.0])
    check_bit_causality(hgrn_scan, inputs, at=21)


@pytest.mark.parametrize("length", [1, 19])
def test_gradients_in_double_precision(form, length) -> None:
    inputs = [x[..., :2].requires_grad_() for x in make_inputs(length, torch.float64)]
    state = torch.randn(B, 2, dtype=torch.float64, requires_grad=True)

    def scan(i: Tensor, f: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return hgrn_scan(i, f, initial_state=state, segment_ids=random_segments(B, length), output_final_state=True)

    assert torch.autograd.gradcheck(scan, (*inputs, state))


def test_states_stay_fp32() -> None:
    i, f = make_inputs(21)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, state = hgrn_scan(i.bfloat16(), f, output_final_state=True)
    exact, _ = hgrn_scan.naive(i.bfloat16().float(), f)
    assert h.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert_close(state, exact[:, -1], 1e-6)


def test_operator_contract() -> None:
    """Schema, meta implementation and autograd registration agree with what the operator does."""
    i, f = (x.requires_grad_() for x in make_inputs(9))
    torch.library.opcheck(elementwise._scan, (i, f, None, False))
    torch.library.opcheck(elementwise._scan, (i, f, torch.randn(B, D, requires_grad=True), False))


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    options = {"initial_state": torch.randn(B, D), "segment_ids": random_segments(B, 21)}
    compiled = torch.compile(hgrn_scan, fullgraph=True)
    inputs = make_inputs(21)
    assert_close(with_gradients(compiled, inputs, **options), with_gradients(hgrn_scan, inputs, **options), 1e-6)
