"""Experts over the tokens that chose them, against the formula in fp64, one expert over all tokens after another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_arch.ops import experts
from hf_arch.ops.gelu import tanh_gelu
from tests.ops.test_native import needs_kernels
from tests.suite.models import perturbed_model, token_ids

# Tokens, choices, experts, width, inner width: around the lanes of a vector; experts that nobody chooses, one alone.
SHAPES = [(1, 1, 1, 3, 5), (7, 2, 4, 16, 8), (40, 2, 6, 33, 17), (5, 3, 9, 20, 48), (70, 1, 2, 24, 100)]
FORMS = {"silu": (F.silu, True), "gelu": (tanh_gelu, True), "plain": (F.gelu, False)}


def inputs(shape: tuple[int, ...], gated: bool, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    tokens, choices, count, width, inner = shape
    torch.manual_seed(tokens)
    chosen = torch.rand(tokens, count).topk(choices, dim=-1).indices
    made = [
        torch.randn(tokens, width),
        torch.rand(tokens, choices),
        torch.randn(count, (1 + gated) * inner, width) * width**-0.5,
        torch.randn(count, width, inner) * inner**-0.5,
    ]
    given = [x if i == 1 else x.to(dtype) for i, x in enumerate(made)]
    return [x.requires_grad_() for x in given], chosen


def formula(
    x: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    chosen: Tensor,
    activation: Callable[[Tensor], Tensor],
    gated: bool,
) -> Tensor:
    out = torch.zeros_like(x)
    for expert in range(len(up)):
        inner = x @ up[expert].mT
        if gated:
            gate, inner = inner.chunk(2, -1)
            inner = activation(gate) * inner
        else:
            inner = activation(inner)
        out = out + ((chosen == expert) * weights).sum(-1, keepdim=True) * (inner @ down[expert].mT)
    return out


def results(
    x: Tensor, weights: Tensor, up: Tensor, down: Tensor, chosen: Tensor, form: str, exact: bool = False
) -> list[Tensor]:
    """The output and the gradients of tokens, weights and both parameters."""
    given = [x, weights, up, down]
    activation, gated = FORMS[form]
    if exact:
        out = formula(*(v.double() for v in given), chosen, activation, gated)
    else:
        out = experts.experts_sum(x, chosen, weights, up, down, activation, gated)
    torch.manual_seed(0)
    return [out.detach(), *torch.autograd.grad(out, given, torch.randn(out.shape).to(out.dtype))]


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_formula(shape: tuple[int, ...], form: str) -> None:
    given, chosen = inputs(shape, FORMS[form][1])
    assert experts.fits(*given)
    for found, right in zip(results(*given, chosen, form), results(*given, chosen, form, exact=True), strict=True):
        torch.testing.assert_close(found, right.to(found.dtype), rtol=2e-5, atol=2e-5)


@needs_kernels
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16(shape: tuple[int, ...], form: str, autocast: bool) -> None:
    """By autocast, and of a model in bf16."""
    given, chosen = inputs(shape, FORMS[form][1], torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert experts.fits(*given)
        made = results(*given, chosen, form)
    assert [x.dtype for x in made] == [given[0].dtype, *(x.dtype for x in given)]
    for found, right in zip(made, results(*given, chosen, form, exact=True), strict=True):
        assert float((found.double() - right).norm() / right.norm()) < 0.03


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives(form: str) -> None:
    given, chosen = inputs((6, 2, 5, 8, 6), FORMS[form][1])
    activation, gated = FORMS[form]

    def twice(out: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(out.square().sum(), given, create_graph=True)
        return list(torch.autograd.grad(sum((x.square().sum() for x in first), torch.zeros(())), given))

    x, weights, up, down = given
    found = twice(experts.experts_sum(x, chosen, weights, up, down, activation, gated))
    right = twice(formula(*given, chosen, activation, gated))
    for mine, other in zip(found, right, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@needs_kernels
def test_bits_do_not_depend_on_threads() -> None:
    given, chosen = inputs((700, 2, 4, 64, 40), True)
    threads, made = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            places = experts.sorted_places(chosen, 4).of
            rows = experts._Dispatch.apply(given[0], places, torch.float32)
            out = experts._Combine.apply(rows, given[1], places, torch.float32)
            gated = experts._PackedGate.apply(rows)
            loss = out.square().sum() + gated.square().sum()
            made.append([out, gated, *torch.autograd.grad(loss, given[:2])])
    finally:
        torch.set_num_threads(threads)
    assert all(all(map(torch.equal, made[0], other)) for other in made[1:])


@needs_kernels
def test_what_is_not_a_number_stays_in_its_token() -> None:
    given, chosen = inputs((9, 2, 3, 16, 16), True)
    with torch.no_grad():
        given[0][4, 3] = float("nan")
    out, of_x, of_weights, *_ = results(*given, chosen, "silu")
    others = torch.arange(9) != 4
    assert out[4].isnan().all()
    assert all(bool(x[others].isfinite().all()) for x in (out, of_x, of_weights))


@needs_kernels
@pytest.mark.parametrize("autocast", [True, False])
def test_a_model_calls_it_where_a_gradient_or_autocast_is_on(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    plain = experts._call
    monkeypatch.setattr(experts, "_call", lambda name, *rest: (called.append(name), plain(name, *rest)))
    model, ids = perturbed_model("moe"), token_ids(2, 9)

    def run(gradient: bool = True) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(gradient):
            out = model(ids, use_cache=False).logits
        if gradient:
            out.float().sum().backward()
        return out.detach().float()

    def near(found: Tensor, right: Tensor) -> bool:
        # In bf16 two experts may be so near that a token chooses the other one.
        off = (found - right).abs().flatten()
        return bool(off.median() < 0.02) if autocast else bool(off.max() < 2e-5)

    mine = run()
    assert any(name.startswith("combine_backward") for name in called)
    called.clear()
    scored = run(gradient=False)
    assert bool(called) == autocast
    assert near(scored, mine)
    called.clear()
    with FlopCounterMode(display=False):
        run()
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    other = run()
    assert not called
    assert near(other, mine)
