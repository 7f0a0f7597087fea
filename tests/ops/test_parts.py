"""Parts of rows: the values and gradients of a projection that is split, however many parts have a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_arch.ops.parts import empty_parts, linear_parts, side_by_side, split_parts
from tests.ops.recurrences import assert_close

WIDTHS = (5, 1, 0, 6)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    return F.linear(x, weight, bias).split(WIDTHS, -1)


def parts(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    return linear_parts(x, weight, bias, WIDTHS)


def given(with_bias: bool = True) -> list[Any]:
    torch.manual_seed(0)
    tensors = torch.randn(2, 3, 4), torch.randn(12, 4), torch.randn(12)
    return [x.requires_grad_() for x in tensors[: 2 + with_bias]] + [None] * (not with_bias)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("used", [(0, 1, 2, 3), (1,), (0, 3), (2,)])
def test_values_and_gradients(with_bias: bool, used: tuple[int, ...]) -> None:
    inputs = given(with_bias)
    wanted = [x for x in inputs if x is not None]
    results = []
    for form in (parts, plain):
        outputs = form(*inputs)
        total = sum((outputs[place].sin() * (place + 1)).sum() for place in used)
        results.append((outputs, torch.autograd.grad(total, wanted)))
    (found, grads), (expected, expected_grads) = results
    assert all(part.is_contiguous() for part in found)
    for pair in (*zip(found, expected, strict=True), *zip(grads, expected_grads, strict=True)):
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


def test_gradients_are_made_for_what_wants_one() -> None:
    for wanted in range(3):
        inputs = [x.detach().requires_grad_(place == wanted) for place, x in enumerate(given())]
        sum(part.sin().sum() for part in parts(*inputs)).backward()
        other = [x.detach().requires_grad_(place == wanted) for place, x in enumerate(given())]
        sum(part.sin().sum() for part in plain(*other)).backward()
        assert_close(inputs[wanted].grad, other[wanted].grad, 1e-5)


def test_second_derivatives() -> None:
    results = []
    for form in (parts, plain):
        inputs = given()
        first = torch.autograd.grad(sum(part.sin().sum() for part in form(*inputs)), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, 1e-5)


def test_under_autocast_the_product_is_cast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {part.dtype for part in parts(*given())} == {torch.bfloat16}


def test_gradients_that_lie_side_by_side_are_not_copied() -> None:
    x = torch.randn(2, 3, 10, requires_grad=True)
    first, second = split_parts(x, (6, 4))
    made = empty_parts(first.unflatten(-1, (2, 3)), second.unflatten(-1, (1, 4)))
    assert side_by_side(*made) and made[0].shape == (2, 3, 2, 3)
    made = [grad.normal_().flatten(2) for grad in made]
    (grad,) = torch.autograd.grad((first, second), x, made)
    assert grad.data_ptr() == made[0].data_ptr() and torch.equal(grad, torch.cat(made, -1))


def test_other_gradients_are_joined() -> None:
    x = torch.randn(2, 3, 10, requires_grad=True)
    assert all(part.is_contiguous() for part in empty_parts(*torch.randn(2, 2, 3, 2, 5)))
    for used in ((0, 1), (1,)):
        outputs = split_parts(x, (6, 4))
        (found,) = torch.autograd.grad(sum(outputs[place].sin().sum() for place in used), x)
        outputs = x.split((6, 4), -1)
        (expected,) = torch.autograd.grad(sum(outputs[place].sin().sum() for place in used), x)
        assert torch.equal(found, expected)
    twice = torch.randn(2, 3, 10)
    assert not side_by_side(twice[..., :6], twice[..., 5:9]) and not side_by_side(twice[..., 4:], twice[..., :4])
