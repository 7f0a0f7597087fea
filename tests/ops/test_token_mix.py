"""The mix of a token with the one before it in its row, by the C kernel, against the forms that make that one first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_arch.ops.conv import token_shift
from hf_arch.ops.token_mix import shifted_token_mix, token_mix
from tests.ops.recurrences import assert_close
from tests.ops.test_native import needs_kernels

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 2), (3, 33, 20, 6), (2, 64, 48, 1), (1, 70, 16, 8)]
"""B, T, D and streams; tasks of the kernel are 32 rows."""


def inputs_of(batch: int, length: int, width: int, streams: int) -> list[Tensor]:
    torch.manual_seed(length)
    return [torch.randn(batch, length, width), torch.rand(streams, width)]


def documents(batch: int, length: int) -> Tensor:
    torch.manual_seed(batch)
    return (torch.rand(batch, length) < 0.3).cumsum(1)


def run(inputs: list[Tensor], segment_ids: Tensor | None, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    x, amounts = (each.to(dtype).detach().requires_grad_() for each in inputs)
    y = torch.stack(shifted_token_mix(x, amounts, segment_ids))
    weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), (x, amounts))]


@needs_kernels
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_a_shift_and_a_mix(shape: tuple[int, ...], packed: bool) -> None:
    inputs, segment_ids = inputs_of(*shape), documents(*shape[:2]) if packed else None
    for found, exact in zip(run(inputs, segment_ids), run(inputs, segment_ids, torch.float64), strict=True):
        assert_close(found, exact, 1e-6)


@needs_kernels
def test_outputs_are_those_of_a_shift_to_the_bit() -> None:
    x, amounts = inputs_of(3, 33, 20, 6)
    segment_ids = documents(3, 33)
    x.requires_grad_()
    found = shifted_token_mix(x, amounts, segment_ids)
    expected = token_mix(x, token_shift(x, segment_ids=segment_ids)[0], amounts)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@needs_kernels
def test_nothing_passes_the_start_of_a_document_or_of_a_row() -> None:
    inputs, segment_ids = inputs_of(2, 40, 20, 3), (torch.arange(40) >= 32).long().expand(2, 40)
    inputs[0][0, 31] = torch.nan
    y, grad, _ = run(inputs, segment_ids)
    assert y[:, 0, 31].isnan().all() and y.isnan().sum() == 3 * 20 and grad.isfinite().all()
    inputs[0][0, 31], inputs[0][0, 39] = 0.0, torch.inf
    y, _, _ = run(inputs, segment_ids)
    assert y[:, 1].isfinite().all() and y[:, 0, :39].isfinite().all()


@needs_kernels
def test_threads_and_later_tokens_do_not_move_a_bit() -> None:
    inputs, before, found = inputs_of(3, 75, 200, 4), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run(inputs, documents(3, 75)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))
    inputs[0][:, 40:] += 1.0
    assert torch.equal(run(inputs, documents(3, 75))[0][:, :, :40], found[0][0][:, :, :40])


@needs_kernels
@pytest.mark.parametrize("packed", [False, True])
def test_second_derivatives_are_those_of_torch(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [each.requires_grad_() for each in inputs_of(2, 5, 20, 3)]
    segment_ids, made_by = documents(2, 5) if packed else None, []

    def second() -> tuple[Tensor, ...]:
        mixed = shifted_token_mix(*tensors, segment_ids)
        made_by.append(mixed[0].grad_fn.name())
        first = torch.autograd.grad(torch.stack(mixed).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), tensors)

    found = second()
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    for one, other in zip(found, second(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    assert "Mix" in made_by[0] and "Mix" not in made_by[1]
