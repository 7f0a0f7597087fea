"""GELU by tanh against its formula in fp64, and where torch's own is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_arch.ops import gelu
from hf_arch.ops.gelu import tanh_gelu
from tests.ops.test_native import needs_kernels

COUNTS = [1, 3, 17, 4096, 9001]
EXTREMES = [float("nan"), float("inf"), -1e30, 1e30, -1e20, 1e20, -90.0, -9.0, -0.0, 0.0, 9.0, 90.0]


def numbers(count: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(count)
    scales = torch.tensor([0.1, 1.0, 4.0, 20.0])[torch.randint(4, (count,))]
    return (torch.randn(count) * scales).to(dtype).requires_grad_()


def torchs(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", COUNTS)
def test_it_is_as_exact_as_torchs(count: int, dtype: torch.dtype) -> None:
    x = numbers(count, dtype)
    wide = x.detach().double().requires_grad_()
    made = {name: [f(x), *torch.autograd.grad(f(x).sum(), x)] for name, f in (("own", tanh_gelu), ("torch", torchs))}
    exact = [torchs(wide), *torch.autograd.grad(torchs(wide).sum(), wide)]
    for found, other, right in zip(made["own"], made["torch"], exact, strict=True):
        assert found.dtype == dtype
        unit = torch.finfo(dtype).eps * right.abs().max()
        assert (found - right).abs().max() <= 1.05 * (other - right).abs().max() + unit


@needs_kernels
def test_extremes() -> None:
    x = torch.tensor(EXTREMES, requires_grad=True)
    y = tanh_gelu(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, torchs(x), equal_nan=True)
    assert grad[0].isnan() and grad[1:].isfinite().all()
    limits = torch.where(x > 8, 1.0, torch.where(x < -8, 0.0, 0.5))
    torch.testing.assert_close(grad[1:], limits[1:])


@needs_kernels
def test_second_derivatives() -> None:
    x = numbers(40, torch.float32)
    wide = x.detach().double().requires_grad_()

    def twice(function: object, given: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(function(given).square().sum(), given, create_graph=True)  # type: ignore[operator]
        return torch.autograd.grad(first.square().sum(), given)[0]

    torch.testing.assert_close(twice(tanh_gelu, x).double(), twice(torchs, wide), rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads_or_on_a_gradient(dtype: torch.dtype) -> None:
    x, threads, made = numbers(40_001, dtype), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = tanh_gelu(x)
            made.append([y.detach(), *torch.autograd.grad(y.float().sum(), x)])
    finally:
        torch.set_num_threads(threads)
    assert all(all(map(torch.equal, made[0], other)) for other in made)
    with torch.no_grad():
        assert torch.equal(tanh_gelu(x), made[0][0])


@needs_kernels
def test_torchs_takes_its_place_where_it_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    plain = gelu.pointwise

    def noting(kernels: object, name: str, *inputs: Tensor) -> list[Tensor]:
        called.append(name)
        return plain(kernels, name, *inputs)

    monkeypatch.setattr(gelu, "pointwise", noting)
    x = numbers(60, torch.float32)
    tanh_gelu(x).sum().backward()
    with torch.no_grad():  # what is scored is what was trained
        tanh_gelu(x)
    assert called == ["gelu_tanh", "gelu_tanh_backward", "gelu_tanh"]
    called.clear()
    with FlopCounterMode(display=False):
        tanh_gelu(x).sum().backward()
    tanh_gelu(x.double()).sum().backward()
    torch.func.grad(lambda given: tanh_gelu(given).sum())(x.detach())
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    tanh_gelu(x).sum().backward()
    assert not called
