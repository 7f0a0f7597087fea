"""The kernel of softplus decays against its form in torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_arch.ops.softplus_decay import softplus_decay
from tests.ops.recurrences import assert_close
from tests.ops.test_native import needs_kernels

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 1), (2, 33, 3, 20), (1, 70, 2, 64), (3, 25, 6, 1)]
"""B, T, H, C; tasks of the kernel are 32 rows."""


def inputs_of(batch: int, length: int, heads: int, channels: int, scale: float = 3.0) -> list[Tensor]:
    torch.manual_seed(length)
    width = heads * channels
    return [scale * torch.randn(batch, length, width), torch.randn(heads), torch.randn(width)]


def run(inputs: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    given = [x.to(dtype).detach().requires_grad_() for x in inputs]
    y = softplus_decay(*given)
    weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), given)]


@needs_kernels
@pytest.mark.parametrize("scale", [1.0, 60.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_torchs_form(shape: tuple[int, ...], scale: float) -> None:
    inputs = inputs_of(*shape, scale)
    for found, exact in zip(run(inputs), run(inputs, torch.float64), strict=True):
        assert found.shape == exact.shape
        assert_close(found, exact, 1e-5)


@needs_kernels
def test_threads_and_other_tokens_do_not_move_a_bit() -> None:
    inputs, before, found = inputs_of(3, 75, 2, 200), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run(inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))
    inputs[0][:, 40:] += 1.0
    assert torch.equal(run(inputs)[0][:, :40], found[0][0][:, :40])
    inputs[0][1, 3, 7] = torch.nan
    y = run(inputs)[0]
    assert y[1, 3, 0, 7].isnan() and y.isnan().sum() == 1


@needs_kernels
@pytest.mark.parametrize("frozen", [None, 0, 1])
def test_second_derivatives_are_those_of_torch(frozen: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    given, made_by = [x.requires_grad_() for x in inputs_of(2, 5, 2, 3)], []
    if frozen is not None:
        given[frozen].requires_grad_(False)
    wanted = [x for x in given if x.requires_grad]

    def second() -> tuple[Tensor, ...]:
        y = softplus_decay(*given)
        made_by.append(y.grad_fn.name())
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), wanted)

    found = second()
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    for one, other in zip(found, second(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert "_Decay" in made_by[0] and "_Decay" not in made_by[1]
