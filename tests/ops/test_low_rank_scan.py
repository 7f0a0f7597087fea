"""The selective scan that makes its step sizes of a few numbers a token, against the loop in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_arch.ops.documents import document_keep
from hf_arch.ops.low_rank_scan import has_low_rank_scan, low_rank_scan
from hf_arch.ops.selective_scan import selective_scan
from tests.ops.test_native import needs_kernels
from tests.suite.models import perturbed_model, token_ids

# Batch, time, channels, states, rank: around the 8 steps of a chunk, vectors of 4 to 16 and the 128 channels of a task.
SIZES = [(1, 2, 3, 1, 1), (2, 7, 16, 5, 3), (2, 8, 8, 2, 4), (2, 33, 131, 16, 23), (3, 40, 257, 4, 8)]
NAMES = ("x", "x_weight", "dt_weight", "dt_bias", "A", "D", "z")


def make_inputs(sizes: tuple[int, ...], strong: bool = False) -> dict[str, Tensor]:
    """strong: step sizes up to 50, and some that vanish."""
    batch, length, width, states, rank = sizes
    torch.manual_seed(length)
    bias = torch.where(torch.arange(width) % 3 == 0, 50.0, -90.0) if strong else torch.randn(width) - 2
    shapes = (batch, length, width), (rank + 2 * states, width), (width, rank)
    x, x_weight, dt_weight = (torch.randn(shape) * shape[-1] ** -0.5 for shape in shapes)
    inputs = x * width**0.5, x_weight, dt_weight, bias, -0.1 - 4 * torch.rand(width, states), torch.randn(width)
    return dict(zip(NAMES, (*inputs, torch.randn(batch, length, width)), strict=True))


def loop(segment_ids: Tensor | None, *inputs: Tensor) -> Tensor:
    x, x_weight, dt_weight, dt_bias, A, D, z = inputs
    rank, states = dt_weight.shape[1], A.shape[1]
    low, B, C = F.linear(x, x_weight).split([rank, states, states], -1)
    dt = F.linear(low, dt_weight, dt_bias)
    return selective_scan.naive(x, dt, A, B, C, D, z, dt_softplus=True, segment_ids=segment_ids)[0]


def fused(segment_ids: Tensor | None, *inputs: Tensor) -> Tensor:
    keep = None if segment_ids is None else document_keep(segment_ids, torch.float32)
    return low_rank_scan(*inputs, keep)


def run(function: object, segment_ids: Tensor | None, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The output, and gradients of a sum with fixed weights."""
    given = [x.clone().requires_grad_() for x in inputs.values()]
    y = function(segment_ids, *given)  # type: ignore[operator]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), given)]


@needs_kernels
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_it_is_the_loop_in_fp64(sizes: tuple[int, ...], strong: bool, documents: bool) -> None:
    segments = torch.arange(sizes[1]).div(5, rounding_mode="floor").expand(sizes[0], -1) if documents else None
    inputs = make_inputs(sizes, strong)
    found = run(fused, segments, inputs)
    expected = run(loop, segments, {name: x.double() for name, x in inputs.items()})
    for name, x, y in zip(("y", *NAMES), found, expected, strict=True):
        atol = 2e-6 * max(1e-30, float(y.abs().max()))  # a decay is no less than 1e-38
        torch.testing.assert_close(x.double(), y, rtol=2e-6, atol=atol, msg=name)


@needs_kernels
def test_later_tokens_do_not_move_earlier_ones() -> None:
    inputs = make_inputs((1, 33, 131, 16, 23))
    expected = fused(None, *inputs.values())
    for name in ("x", "z"):
        changed = inputs[name].clone()
        changed[:, 21:] *= 0.5
        found = fused(None, *{**inputs, name: changed}.values())
        assert torch.equal(found[:, :21], expected[:, :21]) and not torch.equal(found, expected), name


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_a_number_stays_visible(name: str) -> None:
    inputs = make_inputs((1, 20, 5, 3, 2))
    inputs[name].view(-1)[-1] = float("nan")
    assert fused(None, *inputs.values())[0, -1].isnan().any()


@needs_kernels
def test_threads_do_not_move_a_bit() -> None:
    before, found = torch.get_num_threads(), []
    inputs = make_inputs((3, 40, 257, 4, 8))
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run(fused, None, inputs))
    finally:
        torch.set_num_threads(before)
    for name, one, three in zip(("y", *NAMES), *found, strict=True):
        assert torch.equal(one, three), name


@needs_kernels
def test_who_has_none_takes_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs((1, 8, 8, 2, 4))
    assert not has_low_rank_scan(*inputs.values())  # no gradient
    inputs["x"].requires_grad_()
    assert has_low_rank_scan(*inputs.values())
    assert not has_low_rank_scan(*[x.double() for x in inputs.values()])
    with torch.autocast("cpu", torch.bfloat16):
        assert not has_low_rank_scan(*inputs.values())
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    assert not has_low_rank_scan(*inputs.values())


@pytest.mark.parametrize("called", ["x_proj", "dt_proj"])
def test_a_layer_that_somebody_listens_to_is_called(called: str) -> None:
    model, ids, seen = perturbed_model("mamba").train(), token_ids(), []
    alone = model(input_ids=ids, labels=ids, use_cache=False).loss
    layers = [module for name, module in model.named_modules() if name.endswith(called)]
    handles = [layer.register_forward_hook(lambda *given: seen.append(given[0])) for layer in layers]
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    for handle in handles:
        handle.remove()
    assert layers and seen == layers
    torch.testing.assert_close(loss, alone, rtol=1e-6, atol=0)
