"""Gradients of every recurrence against finite differences in fp64, in each of its branches.

One token (the step), whole chunks, and chunks with a rest; with and without a state and documents. A second derivative
is an error where the gradient is worked out by hand, and right where autograd makes it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.cases import CASES, B
from tests.ops.recurrences import Op, assert_close, random_segments


def make_op(name: str, length: int, with_state: bool, packed: bool, form: str = "op") -> tuple[Op, list]:
    """The op as a function of tensors to tensors, and its arguments in fp64."""
    case = CASES[name]
    inputs = [None if x is None else x.double() for x in case.inputs(length, "mild")]
    states = [x.double() for x in case.state()] if with_state else []
    options = {"output_final_state": True}
    if case.chunked and form == "op":
        options["chunk_size"] = 4
    if packed:
        options["segment_ids"] = random_segments(B, length)

    def op(*tensors: Tensor) -> tuple[Tensor, ...]:
        state = tensors[len(inputs) :]
        initial = None if not state else state[0] if len(state) == 1 else state
        o, final = getattr(case, form)(*tensors[: len(inputs)], initial_state=initial, **options)
        return (o, final) if isinstance(final, Tensor) else (o, *final)

    return op, [None if x is None else x.requires_grad_() for x in (*inputs, *states)]


@pytest.mark.parametrize("packed", [False, True], ids=["row", "documents"])
@pytest.mark.parametrize("with_state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("length", [1, 8, 11])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name: str, length: int, with_state: bool, packed: bool) -> None:
    op, tensors = make_op(name, length, with_state, packed)
    assert torch.autograd.gradcheck(op, tensors, fast_mode=True)


@pytest.mark.parametrize("packed", [False, True], ids=["row", "documents"])
@pytest.mark.parametrize("length", [1, 11])
@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_are_right_or_an_error(name: str, length: int, packed: bool) -> None:
    op, tensors = make_op(name, length, True, packed)
    naive, _ = make_op(name, length, True, packed, form="naive")
    exact = second_derivatives(naive, tensors)
    try:
        found = second_derivatives(op, tensors)
    except RuntimeError as error:
        assert "has no second derivative" in str(error) or "no autograd formula" in str(error)
    else:
        assert_close(found, exact, 1e-9)


def second_derivatives(op: Op, tensors: list) -> tuple:
    """Of a fixed random function of the op's gradients."""
    variables = [x for x in tensors if x is not None]
    draw = torch.Generator().manual_seed(2)

    def weigh(parts) -> Tensor:
        return sum((part * torch.randn(part.shape, generator=draw)).sum() for part in parts)

    first = torch.autograd.grad(weigh(op(*tensors)), variables, create_graph=True, materialize_grads=True)
    return torch.autograd.grad(weigh(x for x in first if x.requires_grad), variables, materialize_grads=True)
