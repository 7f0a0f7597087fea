"""Norms: the closed gradient is that of the formula, in every combination, block by block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_arch.ops import norm
from hf_arch.ops.norm import l2_norm, rms_norm, sigmoid_gated_rms_norm, silu_gated_rms_norm
from tests.ops.recurrences import assert_close, with_gradients

EPS = 1e-3


def formula(x: Tensor, weight: Tensor | None, gate: Tensor | None, kind: str, **_: object) -> Tensor:
    opening = 1.0 if gate is None else torch.sigmoid(gate) * (1.0 if kind == "sigmoid" else gate)
    x = x * opening if kind == "first" else x
    y = x / torch.sqrt(x.square().mean(-1, keepdim=True) + EPS)
    y = y if weight is None else y * weight
    return y if kind == "first" else y * opening


def norm_of(x: Tensor, weight: Tensor | None, gate: Tensor | None, kind: str, **_: object) -> Tensor:
    if gate is None:
        return rms_norm(x, weight, EPS)
    if kind == "sigmoid":
        return sigmoid_gated_rms_norm(x, weight, gate, EPS)
    return silu_gated_rms_norm(x, weight, gate, EPS, kind == "first")


def make_inputs(weight: tuple[int, ...] | None, gated: bool, dtype: torch.dtype = torch.float64) -> list:
    """(x [2, 5, 3, 6], weight, gate); x is no contiguous tensor."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x = random(2, 3, 5, 6).transpose(1, 2)
    return [x, None if weight is None else random(*weight), random(2, 5, 3, 6) if gated else None]


CASES = ["plain", "after", "first", "sigmoid"]


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("weight", [None, (6,), (3, 6)])
def test_formula_and_gradients(monkeypatch: pytest.MonkeyPatch, weight: tuple[int, ...] | None, kind: str) -> None:
    inputs = make_inputs(weight, kind != "plain")
    expected = with_gradients(formula, inputs, kind=kind)
    for block in (1, 24, 2**18):  # of one row, of some with a rest, of all
        monkeypatch.setattr(norm, "BLOCK_ELEMENTS", block)
        assert_close(with_gradients(norm_of, inputs, kind=kind), expected, 1e-12)
    with torch.no_grad():
        assert_close(norm_of(*inputs, kind), expected[0], 1e-12)


@pytest.mark.parametrize("kind", CASES)
def test_half_precision_is_rounded_once(kind: str) -> None:
    inputs = make_inputs((6,), kind != "plain", torch.bfloat16)
    wide = [None if x is None else x.double() for x in inputs]
    outputs, gradients = with_gradients(norm_of, inputs, kind=kind)
    assert {x.dtype for x in (*outputs, *gradients)} == {torch.bfloat16}
    expected = with_gradients(formula, wide, kind=kind)
    assert_close((outputs, gradients), expected, 2**-8)


def test_l2_norm_keeps_epsilon_inside_the_root() -> None:
    x = torch.tensor([[3e-3, 4e-3], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    expected = x.detach() / (torch.tensor([[25e-6], [0.0]], dtype=torch.float64) + 1e-6).sqrt()
    assert_close(l2_norm(x.detach()), expected, 1e-12)
    assert_close(l2_norm(x), expected, 1e-12)
    assert torch.autograd.gradcheck(l2_norm, (x,))


def test_a_row_is_normed_the_same_whatever_stands_beside_it() -> None:
    x = torch.randn(7, 33).requires_grad_()
    assert torch.equal(rms_norm(x, None, EPS)[:3], rms_norm(x[:3], None, EPS))
    assert torch.equal(F.normalize(x, dim=-1).argmax(-1), l2_norm(x).argmax(-1))


def test_a_row_of_zeros_without_an_epsilon_is_as_many_rows_are() -> None:
    row, weight = torch.zeros(1, 8), torch.ones(8)
    with torch.no_grad():
        one, two = rms_norm(row, weight, 0.0), rms_norm(row.expand(2, 8), weight, 0.0)
    assert torch.equal(one.isnan(), two[:1].isnan()) and one.isnan().all()


@pytest.mark.parametrize("weight", [(384,), (1, 384)])
def test_one_row_is_the_formula_whoever_looks_on(weight: tuple[int, ...]) -> None:
    """A step of decoding has one row, whose square is read as a number where nobody records the operations."""
    scale, x = torch.randn(*weight), torch.randn(1, 1, 384) * 3
    expected = formula(x.double(), scale.double(), None, False).float()
    assert_close(rms_norm(x, scale, EPS), expected, 1e-6)
    rows = torch.cat((x, 100 * x))
    if len(weight) == 1:
        with torch.no_grad():
            assert_close(torch.func.vmap(lambda row: rms_norm(row, scale, EPS))(rows), rms_norm(rows, scale, EPS), 1e-6)
    _, slope = torch.func.jvp(lambda x: rms_norm(x, scale, EPS), (x,), (x,))
    assert_close(
        slope, formula(x.double(), scale.double(), None, False).float() * EPS / (x.square().mean() + EPS), 1e-5
    )
    traced = torch.jit.trace(lambda x: rms_norm(x, scale, EPS), x)
    exported = torch.export.export(_Norm(scale), (x,)).module()
    compiled = torch.compile(_Norm(scale), backend="eager", fullgraph=True)
    for other in (x, 5 * x + 1):
        for function in (traced, exported, compiled):
            assert_close(function(other), formula(other.double(), scale.double(), None, False).float(), 1e-6)


class _Norm(torch.nn.Module):
    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = torch.nn.Buffer(scale)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale, EPS)
