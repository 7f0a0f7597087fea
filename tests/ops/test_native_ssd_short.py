"""The C kernel of Mamba-2's recurrence for short rows that no state enters or leaves, against the loop in fp64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_arch.ops import native_ssd
from hf_arch.ops.parts import split_parts
from hf_arch.ops.ssd import ssd
from tests.ops.test_native import needs_kernels
from tests.ops.test_native_ssd import SIZES, SKIPS, documents_of, make_inputs

pytestmark = needs_kernels
SHORT = [*SIZES, (1, 129, 3, 1, 40, 33), (2, 256, 3, 1, 64, 128)]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever pays."""
    monkeypatch.setattr(native_ssd, "is_short", lambda *sizes: True)
    yield


def inputs_of(*given: Any, **options: Any) -> dict[str, Tensor]:
    inputs = make_inputs(*given, **options)
    del inputs["initial_state"]
    return inputs


def run(function: Any, inputs: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """The output, and gradients of a sum with fixed weights."""
    given = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y, _ = function(**given, **options)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return [y.detach(), *(x.grad for x in given.values())]


@pytest.mark.parametrize("sizes", SHORT)
@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_the_kernel_is_the_loop_in_fp64(sizes: tuple[int, ...], skip: str, strong: bool, documents: bool) -> None:
    inputs, options = inputs_of(sizes, skip, strong), {"segment_ids": documents_of(sizes) if documents else None}
    found = run(ssd.chunk, inputs, **options)
    expected = run(ssd.naive, {name: x.double() for name, x in inputs.items()}, **options)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=2e-6, atol=2e-6 * float(y.abs().max()))


def test_later_tokens_do_not_move_earlier_ones() -> None:
    inputs = inputs_of((1, 75, 3, 1, 20, 24))
    expected, _ = ssd.chunk(**inputs)
    for name in ("x", "dt", "B", "C"):
        changed = inputs[name].clone()
        changed[:, 41:] *= 0.5
        found, _ = ssd.chunk(**{**inputs, name: changed})
        assert torch.equal(found[:, :41], expected[:, :41]) and not torch.equal(found, expected), name
    shorter = {name: x[:, :41] if name in ("x", "dt", "B", "C") else x for name, x in inputs.items()}
    assert torch.equal(ssd.chunk(**shorter)[0], expected[:, :41])


def test_documents_are_rows_of_their_own() -> None:
    """What one holds moves no other, forwards nor backwards."""
    sizes = (1, 75, 3, 1, 20, 24)
    inputs, segments = inputs_of(sizes), documents_of(sizes, 41)
    whole = run(ssd.chunk, inputs, segment_ids=segments)
    changed = {
        name: x.index_fill(1, torch.arange(41), 0.25) if name in ("x", "dt", "B", "C") else x
        for name, x in inputs.items()
    }
    other = run(ssd.chunk, changed, segment_ids=segments)
    for name, x, y in zip(("y", *inputs), whole, other, strict=True):
        assert name in ("A", "D") or torch.equal(x[:, 41:], y[:, 41:]), name


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C"])
def test_what_is_not_a_number_stays_visible(name: str) -> None:
    for length in (40, 70):
        inputs = inputs_of((1, length, 1, 1, 5, 3))
        inputs[name].view(-1)[0 if name == "A" else 3] = float("nan")
        first = 0 if name == "A" else 3 // inputs[name][0, 0].numel()
        y, _ = ssd.chunk(**inputs)
        assert y[0, first].isnan().any() and (name == "C" or y[0, -1].isnan().any())


def test_threads_do_not_move_a_bit() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run(ssd.chunk, inputs_of((3, 75, 11, 1, 20, 24))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


@pytest.mark.parametrize("heads", [3, 20])
def test_parts_of_wider_rows_are_read_and_their_gradients_written_in_place(heads: int) -> None:
    inputs = inputs_of((2, 40, heads, 1, 20, 24))
    expected = dict(zip(("y", *inputs), run(ssd.chunk, inputs), strict=True))
    rows = torch.cat([inputs.pop(name).flatten(2) for name in "xBC"], -1)

    def joint(rows: Tensor, **others: Any) -> Any:
        parts = split_parts(rows, [heads * 20, 24, 24])
        shapes = ((heads, 20), (1, 24), (1, 24))
        x, B, C = (part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True))
        return ssd.chunk(x=x, B=B, C=C, **others)

    y, grad_rows, *others = run(joint, {"rows": rows, **inputs})
    assert torch.equal(y, expected["y"])
    assert torch.equal(grad_rows, torch.cat([expected[name].flatten(2) for name in "xBC"], -1))
    assert all(torch.equal(grad, expected[name]) for name, grad in zip(inputs, others, strict=True))


def test_a_state_that_is_wanted_is_made_of_short_rows_too() -> None:
    inputs = inputs_of((2, 70, 3, 1, 20, 24))
    y, _ = ssd.chunk(**inputs)
    other, state = ssd.chunk(**inputs, output_final_state=True)
    assert state.shape == (2, 3, 20, 24)
    torch.testing.assert_close(y, other, rtol=1e-5, atol=1e-5)
