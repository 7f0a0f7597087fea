"""torch.func, forward-mode and second derivatives of attention models; recurrences say in one line what they do not do.

Every result is held against another way to the same number, in fp64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, set_seed

import hf_arch
from hf_arch.ops.compat import forward_mode, functorch_levels, transformed
from hf_arch.ops.norm import l2_norm, rms_norm, sigmoid_gated_rms_norm, silu_gated_rms_norm
from tests.suite.models import token_ids

ATTENTION = ("gpt2", "llama", "gqa", "mla", "moe")
Weights = dict[str, Tensor]


def setup(name: str, **overrides: Any) -> tuple[Any, Callable[[Weights, Tensor], Tensor], Weights]:
    """A model, its loss as a function of weights and one row of tokens, and its weights."""
    set_seed(0)
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name, **overrides)).double().eval()
    buffers = dict(model.named_buffers())

    def loss(weights: Weights, row: Tensor) -> Tensor:
        logits = functional_call(model, (weights, buffers), (row[None],), {"use_cache": False}).logits
        return F.cross_entropy(logits[0, :-1], row[1:])  # the model's own loss is fp32

    return model, loss, {key: value.detach() for key, value in model.named_parameters()}


def backward(model: Any, row: Tensor) -> Weights:
    model.zero_grad()
    F.cross_entropy(model(row[None], use_cache=False).logits[0, :-1], row[1:]).backward()
    return {key: value.grad for key, value in model.named_parameters()}


@pytest.mark.parametrize("name", ATTENTION)
def test_gradients_of_each_row_are_those_of_the_rows(name: str) -> None:
    model, loss, weights = setup(name)
    rows = token_ids(3, 9)
    each = vmap(grad(loss), (None, 0))(weights, rows)
    for index, row in enumerate(rows):
        torch.testing.assert_close({key: value[index] for key, value in each.items()}, backward(model, row))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ATTENTION)
def test_forward_mode_and_products_with_the_hessian(name: str) -> None:
    _, loss, weights = setup(name)
    row = token_ids(1, 9)[0]
    generator = torch.Generator().manual_seed(1)
    direction = {key: torch.randn(w.shape, generator=generator, dtype=w.dtype) for key, w in weights.items()}

    def slope(weights: Weights) -> Tensor:
        return jvp(lambda w: loss(w, row), (weights,), (direction,))[1]

    gradient = grad(loss)(weights, row)
    along = sum((gradient[key] * direction[key]).sum() for key in weights)
    torch.testing.assert_close(slope(weights), along)
    forward_over_reverse = jvp(lambda w: grad(loss)(w, row), (weights,), (direction,))[1]
    step = 1e-6
    ahead, behind = ({k: w + sign * step * direction[k] for k, w in weights.items()} for sign in (1, -1))
    numeric = {k: (grad(loss)(ahead, row)[k] - grad(loss)(behind, row)[k]) / (2 * step) for k in weights}
    torch.testing.assert_close(forward_over_reverse, numeric, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad(lambda w: grad_along(loss, w, row, direction))(weights), forward_over_reverse)


def grad_along(loss: Any, weights: Weights, row: Tensor, direction: Weights) -> Tensor:
    found = grad(loss)(weights, row)
    return sum((found[key] * direction[key]).sum() for key in weights)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ATTENTION)
def test_create_graph_gives_the_same_second_derivative(name: str) -> None:
    """With `attn_implementation="eager"`: torch's kernels of sdpa have no second derivative on a CPU."""
    model, loss, weights = setup(name, attn_implementation="eager")
    row = token_ids(1, 9)[0]
    direction = {key: torch.ones_like(value) for key, value in weights.items()}
    loss_now = F.cross_entropy(model(row[None], use_cache=False).logits[0, :-1], row[1:])
    first = torch.autograd.grad(loss_now, list(model.parameters()), create_graph=True)
    model.zero_grad()
    sum(each.sum() for each in first).backward()  # type: ignore[union-attr]
    found = {key: value.grad for key, value in model.named_parameters()}
    expected = jvp(lambda w: grad(loss)(w, row), (weights,), (direction,))[1]
    for key, value in found.items():
        torch.testing.assert_close(value if value is not None else torch.zeros_like(expected[key]), expected[key])


def test_norms_have_second_derivatives() -> None:
    generator = torch.Generator().manual_seed(0)
    x, gate, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 2, 5), (3, 2, 5), (2, 5))
    )
    assert torch.autograd.gradgradcheck(lambda x, w: rms_norm(x, w, 1e-6), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: rms_norm(x, w, 1e-6), (x, weight[0]))
    assert torch.autograd.gradgradcheck(lambda x: rms_norm(x, None, 1e-6), (x,))
    assert torch.autograd.gradgradcheck(lambda x: l2_norm(x), (x,))
    for first in (False, True):
        assert torch.autograd.gradgradcheck(
            lambda x, w, first=first: silu_gated_rms_norm(x, w, torch.sin(x) + gate, 1e-6, first), (x, weight)
        )
    assert torch.autograd.gradgradcheck(
        lambda x, w: sigmoid_gated_rms_norm(x, w, torch.sin(x) + gate, 1e-6), (x, weight)
    )


@pytest.mark.parametrize("name", ["gla", "rwkv7", "mamba2"])
def test_recurrences_refuse_in_one_line(name: str) -> None:
    _, loss, weights = setup(name)
    with pytest.raises(RuntimeError, match=r"its gradient is worked out by hand, which torch\.func") as caught:
        grad(loss)(weights, token_ids(1, 9)[0])
    assert "\n" not in str(caught.value)


def test_loads_of_experts_are_not_counted_under_a_transformation() -> None:
    """They would be tensors of the transformation, dead after it."""
    model, loss, weights = setup("moe")
    row = token_ids(1, 9)[0]
    expected = grad(loss)(weights, row)
    model.train()
    with pytest.raises(ValueError, match=r"torch\.func does not follow the loads that score_bias counts"):
        grad(loss)(weights, row)
    for layer in model.model.layers:
        layer.ffn.options = layer.ffn.options.__class__(**{**vars(layer.ffn.options), "score_bias": False})
    torch.testing.assert_close(grad(loss)(weights, row), expected)


def test_it_is_known_what_encloses_a_call() -> None:
    seen: list[tuple[int, bool, bool]] = []

    def look(x: Tensor) -> Tensor:
        seen.append((functorch_levels(), forward_mode(), transformed()))
        return x.square().sum()

    x = torch.ones(2)
    look(x)
    grad(look)(x)
    vmap(look)(x[None])
    vmap(grad(look))(x[None])
    jvp(look, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        look(x)
    assert [level for level, _, _ in seen] == [0, 1, 1, 2, 1, 0]
    assert [forward for _, forward, _ in seen] == [False, False, False, False, True, True]
    assert [both for *_, both in seen] == [False, True, True, True, True, True]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["llama", "gla", "mamba", "gated_delta_net", "rwkv7", "hgrn", "retnet"])
def test_an_exported_program_runs_with_gradients(name: str) -> None:
    """Where gradients are enabled it gives the model's logits and the model's gradients."""
    set_seed(0)
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name)).eval()
    ids = token_ids(2, 9)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.model(input_ids, use_cache=False).logits

    program = torch.export.export(Logits(), (ids,), strict=False).module()
    logits = program(ids)
    torch.testing.assert_close(logits, model(ids, use_cache=False).logits, rtol=0, atol=1e-5)
    logits.square().sum().backward()
    found = {name.removeprefix("model."): p.grad for name, p in program.named_parameters()}
    model(ids, use_cache=False).logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.grad is not None and key in found:
            torch.testing.assert_close(found[key], parameter.grad, rtol=1e-4, atol=1e-4)
