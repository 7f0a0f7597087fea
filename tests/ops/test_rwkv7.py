"""The C kernels of what RWKV7 does around its recurrence, against their forms in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_arch.layers.norms import HeadGroupNorm
from hf_arch.ops.rwkv7 import gated_output, removal_gates, sigmoid_lerp
from tests.ops.recurrences import assert_close
from tests.ops.test_native import needs_kernels

ROWS = {"lerp": 3, "lerp with a bias": 3, "gates": 3, "gates with biases": 3, "output": 5}
"""How many inputs are [B, T, H, N]."""
WEIGHTS = {"lerp": 0, "lerp with a bias": 1, "gates": 2, "gates with biases": 4, "output": 3}
SHAPES = [(1, 1, 1, 1), (2, 3, 2, 5), (2, 33, 3, 16), (1, 70, 2, 40), (3, 11, 6, 64)]


def inputs_of(kind: str, shape: tuple[int, ...], scale: float = 1.0) -> list[Tensor]:
    torch.manual_seed(shape[1])
    return [
        *(scale * torch.randn(shape) for _ in range(ROWS[kind])),
        *(torch.randn(shape[2:]) for _ in range(WEIGHTS[kind])),
    ]


def call(kind: str, *given: Tensor) -> Tensor:
    if kind.startswith("lerp"):
        return sigmoid_lerp(*(x.flatten(-2) for x in given)).view_as(given[0])
    if kind.startswith("gates"):
        *others, decay_bias, rate_bias = given if len(given) == 7 else (*given, None, None)
        return torch.stack(removal_gates(*others, -0.6, 1e-6, decay_bias, rate_bias))
    *rows, gate, bonus, weight, bias = given
    norm = HeadGroupNorm(*bonus.shape, 1e-3)
    del norm.weight, norm.bias
    norm.weight, norm.bias = weight.flatten(), bias.flatten()  # tensors, for their gradients
    return gated_output(*rows, gate.flatten(2), bonus, norm).view_as(gate)


def run(kind: str, inputs: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    given = [x.to(dtype).detach().requires_grad_() for x in inputs]
    y = call(kind, *given)
    weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), given)]


@needs_kernels
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ROWS)
def test_the_kernels_are_torchs_forms(kind: str, shape: tuple[int, ...], scale: float) -> None:
    inputs = inputs_of(kind, shape, scale)
    for found, exact in zip(run(kind, inputs), run(kind, inputs, torch.float64), strict=True):
        assert_close(found, exact, 1e-5)


@needs_kernels
@pytest.mark.parametrize("kind", ROWS)
def test_padding_and_what_is_no_number(kind: str) -> None:
    """Rows of zeros are finite; a NaN stays in its head."""
    inputs = inputs_of(kind, (2, 5, 2, 20))
    for x in inputs[: ROWS[kind]]:
        x[1, 3] = 0.0
    assert all(x.isfinite().all() for x in run(kind, inputs))
    inputs[0][0, 2, 1, 3] = torch.nan
    bad = run(kind, inputs)[0].isnan().view(-1, 2, 5, 2, 20).any(0).any(-1)
    assert bad[0, 2, 1] and bad.sum() == 1


@needs_kernels
@pytest.mark.parametrize("kind", ROWS)
def test_threads_and_other_tokens_do_not_move_a_bit(kind: str) -> None:
    inputs, before, found = inputs_of(kind, (3, 75, 2, 100)), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run(kind, inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))
    inputs[0][:, 40:] += 1.0
    earlier = (x.view(-1, 3, 75, 2, 100)[:, :, :40] for x in (run(kind, inputs)[0], found[0][0]))
    assert torch.equal(*earlier)


@needs_kernels
@pytest.mark.parametrize("kind", ROWS)
def test_which_form_runs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision has torch's; a second derivative is refused by the kernels and there without them."""
    inputs = inputs_of(kind, (2, 5, 2, 20))
    y = call(kind, *(x.requires_grad_() for x in inputs))
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    grads = torch.autograd.grad(call(kind, *inputs).square().sum(), inputs, create_graph=True)
    torch.autograd.grad(sum(x.square().sum() for x in grads), inputs)
    half = [x.detach().bfloat16() for x in inputs]
    plain = run(kind, half, torch.bfloat16)
    monkeypatch.delenv("HF_ARCH_BACKEND")
    assert all(torch.equal(one, other) for one, other in zip(run(kind, half, torch.bfloat16), plain, strict=True))


@needs_kernels
@pytest.mark.parametrize("kind", ROWS)
def test_checkpoints_look_at_what_is_saved_once(kind: str) -> None:
    inputs = [x.requires_grad_() for x in inputs_of(kind, (2, 5, 2, 20))]
    expected = torch.autograd.grad(call(kind, *inputs).square().sum(), inputs)
    again = checkpoint(lambda *given: call(kind, *given), *inputs, use_reentrant=False)
    found = torch.autograd.grad(again.square().sum(), inputs)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@needs_kernels
def test_a_norm_that_somebody_watches_is_called() -> None:
    *rows, gate, bonus, _, _ = inputs_of("output", (2, 5, 2, 20))
    norm, calls = HeadGroupNorm(2, 20, 1e-3), []
    expected = gated_output(*rows, gate.flatten(2), bonus, norm)
    norm.register_forward_hook(lambda *args: calls.append(args))
    torch.testing.assert_close(gated_output(*rows, gate.flatten(2), bonus, norm), expected, rtol=1e-5, atol=1e-5)

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * expected_norm(x)

    expected_norm = HeadGroupNorm(2, 20, 1e-3)
    other: Any = Doubled()
    assert gated_output(*rows, gate.flatten(2), bonus, other).shape == expected.shape
    assert len(calls) == 1
