"""Mamba's selective scan: the fused operator, the single step and any cutting of the row equal the plain recurrence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_arch.ops import selective_scan as module
from hf_arch.ops.selective_scan import naive_selective_scan, selective_scan

SEGMENTS = torch.tensor([[0] * 3 + [1] * 9 + [2] * 9, [4] * 12 + [3] * 9])


def inputs(batch: int = 2, length: int = 21, width: int = 5, states: int = 3, dtype=None) -> dict[str, Tensor]:
    return {
        "x": torch.randn(batch, length, width, dtype=dtype, requires_grad=True),
        "dt": torch.rand(batch, length, width, dtype=dtype).requires_grad_(),
        "A": (-0.1 - 2 * torch.rand(width, states, dtype=dtype)).requires_grad_(),
        "B": torch.randn(batch, length, states, dtype=dtype, requires_grad=True),
        "C": torch.randn(batch, length, states, dtype=dtype, requires_grad=True),
        "D": torch.randn(width, dtype=dtype, requires_grad=True),
        "initial_state": torch.randn(batch, width, states, dtype=dtype, requires_grad=True),
    }


def results(function, tensors: dict[str, Tensor], **options) -> list[Tensor]:
    """Outputs, final state and the gradients of a fixed random function of both."""
    y, state = function(**tensors, output_final_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    loss = sum((part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum() for part in (y, state))
    return [y, state, *torch.autograd.grad(loss, tuple(tensors.values()))]


def close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def by_document(lengths: list[int]):
    """The scan of each document of a row alone; the initial state belongs to the first, the final one to the last."""

    def scan(x, dt, A, B, C, D, initial_state, output_final_state):
        outputs, state = [], None
        for i, parts in enumerate(zip(*(tensor.split(lengths, 1) for tensor in (x, dt, B, C)), strict=True)):
            xs, dts, Bs, Cs = parts
            y, state = selective_scan(xs, dts, A, Bs, Cs, D, initial_state if i == 0 else None, None, True)
            outputs.append(y)
        return torch.cat(outputs, 1), state

    return scan


def in_pieces(lengths: list[int]):
    """The scan of a row in pieces, each continuing from the state of the one before."""

    def scan(x, dt, A, B, C, D, initial_state, output_final_state):
        outputs, state = [], initial_state
        for xs, dts, Bs, Cs in zip(*(tensor.split(lengths, 1) for tensor in (x, dt, B, C)), strict=True):
            y, state = selective_scan(xs, dts, A, Bs, Cs, D, state, None, True)
            outputs.append(y)
        return torch.cat(outputs, 1), state

    return scan


@pytest.mark.parametrize("length", [1, 2, 7, 8, 21])
@pytest.mark.parametrize("packed", [False, True])
def test_fast_equals_naive(length, packed) -> None:
    tensors = inputs(length=length)
    segments = SEGMENTS[:, :length] if packed else None
    close(
        results(selective_scan, tensors, segment_ids=segments),
        results(naive_selective_scan, tensors, segment_ids=segments),
    )


def test_optional_tensors() -> None:
    tensors = {name: tensor for name, tensor in inputs().items() if name not in ("D", "initial_state")}
    close(results(selective_scan, tensors), results(naive_selective_scan, tensors))


@pytest.mark.parametrize("length", [1, 10])
def test_gradients_in_double_precision(length) -> None:
    tensors = inputs(batch=2, length=length, width=2, states=2, dtype=torch.float64)
    segments = SEGMENTS[:, :length]
    assert torch.autograd.gradcheck(
        lambda *args: selective_scan(*args, segment_ids=segments, output_final_state=True), tuple(tensors.values())
    )


def test_steps_and_pieces_equal_the_whole_row() -> None:
    tensors = inputs()
    whole = results(selective_scan, tensors)
    close(results(in_pieces([1] * 21), tensors), whole)
    close(results(in_pieces([9, 1, 3, 8]), tensors), whole)


def test_packed_documents_equal_separate_ones() -> None:
    tensors = inputs(batch=1)
    close(results(selective_scan, tensors, segment_ids=SEGMENTS[:1]), results(by_document([3, 9, 9]), tensors))


def test_padding_is_a_no_op_anywhere() -> None:
    tensors = inputs(batch=1, length=12)
    valid = torch.tensor([2, 3, 4, 7, 8, 10])
    with torch.no_grad():
        tensors["dt"].index_fill_(1, torch.tensor([0, 1, 5, 6, 9, 11]), 0.0)
    y, state = selective_scan(**tensors, output_final_state=True)
    short = {name: t[:, valid] if t.dim() == 3 and t.shape[1] == 12 else t for name, t in tensors.items()}
    y_short, state_short = selective_scan(**short, output_final_state=True)
    close([y[:, valid], state], [y_short, state_short])


def test_causality_is_bit_exact() -> None:
    tensors = inputs()
    before, _ = selective_scan(**tensors)
    changed = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for name in ("x", "dt", "B", "C"):
        changed[name][:, 11] += 0.5
    after, _ = selective_scan(**changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.equal(before[:, 11], after[:, 11])


def test_without_gradients_nothing_changes() -> None:
    tensors = inputs()
    y, state = selective_scan(**tensors, output_final_state=True)
    with torch.no_grad():
        y_inference, state_inference = selective_scan(**tensors, output_final_state=True)
    assert torch.equal(y, y_inference) and torch.equal(state, state_inference)


@pytest.mark.parametrize("length", [1, 21])
def test_states_stay_fp32(length) -> None:
    tensors = inputs(length=length)
    exact = results(selective_scan, tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(results(selective_scan, tensors), exact, tolerance=0.0)
    for name in ("x", "B", "C"):
        tensors[name] = tensors[name].detach().bfloat16().requires_grad_()
    low = results(selective_scan, tensors)
    rounded = {name: tensor.detach().float().requires_grad_() for name, tensor in tensors.items()}
    assert low[0].dtype == low[2].dtype == torch.bfloat16 and low[1].dtype == torch.float32
    close([low[1]], [results(naive_selective_scan, rounded)[1]])


def test_operator_contract() -> None:
    """Schema, meta implementation and autograd registration agree with what the operators do."""
    tensors = inputs(length=11)
    arguments = [tensors[name] for name in ("x", "dt", "A", "B", "C", "D")]
    torch.library.opcheck(module._scan, (*arguments, tensors["initial_state"].mT, None, True))
    torch.library.opcheck(module._scan, (*arguments, None, torch.ones(2, 11), True))


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    tensors = inputs()
    compiled = torch.compile(selective_scan, fullgraph=True)
    close(results(compiled, tensors, segment_ids=SEGMENTS), results(selective_scan, tensors, segment_ids=SEGMENTS))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strong_decays_over_a_long_row(dtype) -> None:
    tensors = inputs(batch=1, length=4096, width=4, states=2)
    strength = torch.where(torch.rand(1, 4096, 4) < 0.3, 50.0, 0.1)
    tensors["dt"] = (strength * torch.rand(1, 4096, 4) / tensors["A"].abs().max().item()).detach().requires_grad_()
    for name in ("x", "B", "C"):
        tensors[name] = tensors[name].detach().to(dtype).requires_grad_()
    # Gradients of bf16 inputs are rounded once at the end: half a unit in the last place of the largest.
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    close(results(selective_scan, tensors), results(naive_selective_scan, tensors), tolerance)
