"""A squared ReLU between two products, in place by a C kernel, against the three steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hf_arch.ops.squared_relu import squared_relu, squared_relu_between
from tests.ops.recurrences import assert_close
from tests.ops.test_native import needs_kernels

SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 7, 4), (2, 17, 20, 300, 20), (1, 5, 1, 33, 2)]
"""B, T, I, W and O."""


def inputs_of(batch: int, length: int, inner: int, width: int, out: int, scale: float = 1.0) -> list[Tensor]:
    torch.manual_seed(length)
    return [scale * torch.randn(batch, length, inner), torch.randn(width, inner), torch.randn(out, width)]


def run(inputs: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    given = [x.to(dtype).detach().requires_grad_() for x in inputs]
    y = squared_relu_between(*given)
    weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), given)]


@needs_kernels
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_three_steps(shape: tuple[int, ...], scale: float) -> None:
    inputs = inputs_of(*shape, scale)
    for found, exact in zip(run(inputs), run(inputs, torch.float64), strict=True):
        assert_close(found, exact, 1e-5)


@needs_kernels
def test_outputs_are_those_of_the_steps_to_the_bit_and_inputs_stay() -> None:
    inputs = [x.requires_grad_() for x in inputs_of(2, 17, 20, 300, 20)]
    before = [x.detach().clone() for x in inputs]
    y = squared_relu_between(*inputs)
    assert torch.equal(y, F.linear(squared_relu(F.linear(inputs[0], inputs[1])), inputs[2]))
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    first, second = (torch.autograd.grad(y, inputs, weights, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before, inputs, strict=True))
    assert torch.equal(weights, torch.linspace(-1, 1, y.numel()).view(y.shape))


@needs_kernels
@pytest.mark.parametrize("frozen", range(3))
def test_what_is_frozen_gets_no_gradient(frozen: int) -> None:
    inputs = inputs_of(2, 3, 5, 7, 4)
    for number, x in enumerate(inputs):
        x.requires_grad_(number != frozen)
    squared_relu_between(*inputs).sum().backward()
    assert [x.grad is None for x in inputs] == [number == frozen for number in range(3)]


@needs_kernels
def test_checkpoints_and_what_is_no_number() -> None:
    inputs = [x.requires_grad_() for x in inputs_of(2, 5, 20, 33, 4)]
    expected = torch.autograd.grad(squared_relu_between(*inputs).square().sum(), inputs)
    again = checkpoint(squared_relu_between, *inputs, use_reentrant=False)
    found = torch.autograd.grad(again.square().sum(), inputs)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with torch.no_grad():
        inputs[0][0, 2, 3] = torch.nan
    y, grad, *_ = run(inputs)
    assert y[0, 2].isnan().all() and y.isnan().sum() == 4 and grad[0, 2].isnan().all() and grad.isnan().sum() == 20
