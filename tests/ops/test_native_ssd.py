"""The C kernel of Mamba-2's recurrence against torch's chunks and the loop in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_arch.ops.parts import split_parts
from hf_arch.ops.ssd import ssd
from tests.ops.recurrences import assert_close
from tests.ops.test_native import assert_same, needs_kernels, run

pytestmark = needs_kernels
# Batch, time, heads, groups, head dim, state: around the 32 tokens of a chunk, vectors of 4 to 16, rows of a tile and
# the 8 heads of a task.
SIZES = [
    (1, 2, 1, 1, 1, 1),
    (2, 5, 3, 1, 3, 2),
    (2, 37, 4, 2, 20, 13),
    (1, 32, 9, 1, 17, 33),
    (8, 70, 11, 1, 8, 16),
    (1, 100, 6, 3, 33, 60),
    (1, 65, 2, 1, 64, 128),
]
SKIPS = {"none": 0, "a head": 1, "a channel": 2}


def make_inputs(sizes: tuple[int, ...], skip: str = "a head", strong: bool = False) -> dict[str, Tensor]:
    """strong: a third of the log decays dt A near -50, a third of the steps 0."""
    batch, length, heads, groups, width, states = sizes
    torch.manual_seed(length)
    dt, A = torch.rand(batch, length, heads), -0.1 - torch.rand(heads)
    if strong:
        dt = torch.where(dt < 0.3, 50 / A.abs().max() * (1 - dt), torch.where(dt > 0.7, 0.0, dt))
    inputs = {"x": torch.randn(batch, length, heads, width), "dt": dt, "A": A}
    inputs |= {name: torch.randn(batch, length, groups, states) for name in "BC"}
    if SKIPS[skip]:
        inputs["D"] = torch.randn((heads, width)[: SKIPS[skip]])
    return {**inputs, "initial_state": torch.randn(batch, heads, width, states)}


def documents_of(sizes: tuple[int, ...], length: int = 9) -> Tensor:
    return torch.arange(sizes[1]).div(length, rounding_mode="floor").expand(sizes[0], -1)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("documents", [False, True])
def test_the_kernel_is_torch(
    sizes: tuple[int, ...], skip: str, documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = documents_of(sizes) if documents else None
    assert_same(ssd.chunk, make_inputs(sizes, skip), monkeypatch, segment_ids=segments)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_kernel_is_the_loop_in_fp64(sizes: tuple[int, ...], strong: bool, documents: bool) -> None:
    """Gradients too: that of a decay which is next to nothing is so, and A's sums it times a large step."""
    inputs, options = make_inputs(sizes, strong=strong), {"segment_ids": documents_of(sizes) if documents else None}
    found = run(ssd.chunk, inputs, **options)
    expected = run(ssd.naive, {name: x.double() for name, x in inputs.items()}, **options)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=2e-6, atol=2e-6 * float(y.abs().max()))


def test_a_state_that_nobody_gives_or_wants_is_zero_and_not_made() -> None:
    """Alone, with the other, and in its gradients."""
    for length in (20, 32, 75):
        inputs = make_inputs((2, length, 3, 1, 20, 24))
        start = inputs.pop("initial_state")
        for states in ({}, {"initial_state": torch.zeros_like(start)}):
            given, options = list(inputs.values()), {**states, "output_final_state": False}
            wanted = [x.clone().requires_grad_() for x in given]
            y, final = ssd.chunk(*wanted, **options)
            other, _ = ssd.naive(*[x.double() for x in given])
            assert final is None
            assert_close(y.double(), other, 1e-5)
            grads = torch.autograd.grad(y.sin().sum(), wanted)
            doubled = [x.double().requires_grad_() for x in given]
            expected = torch.autograd.grad(ssd.naive(*doubled)[0].sin().sum(), doubled)
            for x, z in zip(grads, expected, strict=True):
                torch.testing.assert_close(x.double(), z, rtol=1e-5, atol=1e-5 * float(z.abs().max()))


def test_only_a_final_state_is_read() -> None:
    inputs = make_inputs((2, 40, 3, 1, 20, 24))
    given = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    ssd.chunk(**given, output_final_state=True)[1].sin().sum().backward()
    wide = {name: x.double().requires_grad_() for name, x in inputs.items()}
    ssd.naive(**wide, output_final_state=True)[1].sin().sum().backward()
    for name in set(given) - {"C", "D"}:
        expected: Any = wide[name].grad
        torch.testing.assert_close(
            given[name].grad.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
        )
    assert given["C"].grad.count_nonzero() == 0


def test_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs((2, 70, 3, 1, 20, 24), strong=True)
    inputs |= {name: inputs[name].bfloat16() for name in ("x", "B", "C")}
    assert_same(ssd.chunk, inputs, monkeypatch)


def test_later_tokens_do_not_move_earlier_ones() -> None:
    inputs = make_inputs((1, 75, 3, 1, 20, 24))
    expected, _ = ssd.chunk(**inputs)
    for name in ("x", "dt", "B", "C"):
        changed = inputs[name].clone()
        changed[:, 41:] *= 0.5
        found, _ = ssd.chunk(**{**inputs, name: changed})
        assert torch.equal(found[:, :41], expected[:, :41]) and not torch.equal(found, expected), name
    shorter = {name: x[:, :41] if name in ("x", "dt", "B", "C") else x for name, x in inputs.items()}
    assert torch.equal(ssd.chunk(**shorter)[0], expected[:, :41])


def test_a_step_of_zero_keeps_the_state_to_the_bit() -> None:
    inputs = make_inputs((2, 40, 3, 1, 20, 13))
    inputs["dt"] = torch.zeros_like(inputs["dt"])
    _, state = ssd.chunk(**inputs, output_final_state=True)
    assert torch.equal(state, inputs["initial_state"])


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C"])
def test_what_is_not_a_number_stays_visible(name: str) -> None:
    inputs = make_inputs((1, 40, 1, 1, 5, 3))
    inputs[name].view(-1)[-1] = float("nan")
    y, state = ssd.chunk(**inputs, output_final_state=True)
    assert y[0, -1].isnan().any() and (name == "C" or state.isnan().any())


def test_threads_do_not_move_a_bit() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run(ssd.chunk, make_inputs((3, 75, 11, 1, 20, 24))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


@pytest.mark.parametrize("heads", [3, 20])
def test_parts_of_wider_rows_are_read_and_their_gradients_written_in_place(heads: int) -> None:
    inputs = make_inputs((2, 40, heads, 1, 20, 24))
    expected = run(ssd.chunk, inputs)
    x, B, C = (inputs.pop(name) for name in "xBC")
    rows = torch.cat([each.flatten(2) for each in (x, B, C)], -1)

    def joint(rows: Tensor, **others: Any) -> Any:
        parts = split_parts(rows, [heads * 20, 24, 24])
        shapes = ((heads, 20), (1, 24), (1, 24))
        x, B, C = (part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True))
        return ssd.chunk(x=x, B=B, C=C, **others)

    names = ("y", "state", "x", *(name for name in make_inputs((1, 1, 1, 1, 1, 1)) if name != "x"))
    by_name = dict(zip(names, expected, strict=True))
    y, state, grad_rows, *others = run(joint, {"rows": rows, **inputs})
    assert torch.equal(y, by_name["y"]) and torch.equal(state, by_name["state"])
    assert torch.equal(grad_rows, torch.cat([by_name[name].flatten(2) for name in "xBC"], -1))
    assert all(torch.equal(grad, by_name[name]) for name, grad in zip(inputs, others, strict=True))
    rows = rows.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        y, _ = joint(rows, **inputs)
        y.sum().backward()
    assert not any(event.key == "aten::cat" for event in seen.key_averages())
