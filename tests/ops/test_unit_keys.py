"""The delta rule of queries and keys that it divides by their lengths itself, in its kernel and in its other forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_arch.ops.delta_rule import delta_rule
from hf_arch.ops.norm import l2_norm
from tests.ops.recurrences import assert_close
from tests.ops.test_native import DELTAS, HEADS, delta_inputs, needs_kernels

EPS = 1e-6
SCALE = 3.0
"""For outputs of order one: with K^-0.5 the terms that cancel in the gradient of decays are larger than these."""


def inputs_of(sizes: tuple[int, ...], form: str) -> dict[str, Tensor]:
    inputs = delta_inputs(*sizes, form=form)
    return {**inputs, "q": 3 * inputs["q"], "k": 0.1 * torch.randn(inputs["k"].shape)}


def separately(q: Tensor, k: Tensor, **others: Any) -> tuple[Tensor, Tensor | None]:
    return delta_rule.naive(l2_norm(q, EPS), l2_norm(k, EPS), scale=SCALE, **others)


def together(**given: Any) -> tuple[Tensor, Tensor | None]:
    return delta_rule.chunk(**given, unit_eps=EPS, scale=SCALE)


def run(form: Any, inputs: dict[str, Tensor], dtype: torch.dtype = torch.float32, **options: Any) -> list[Tensor]:
    given = {name: x.to(dtype).detach().requires_grad_() for name, x in inputs.items()}
    y, state = form(**given, output_final_state=True, **options)
    weights = [torch.linspace(-1, 1, x.numel(), dtype=dtype).view(x.shape) for x in (y, state)]
    loss = (y * weights[0]).sum() + (state * weights[1]).sum()
    return [y.detach(), state.detach(), *torch.autograd.grad(loss, list(given.values()))]


@needs_kernels
@pytest.mark.parametrize("form", DELTAS[:3])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sizes", [*HEADS, (1, 9, 2, 64, 64)])
def test_the_kernel_is_a_norm_and_the_rule(sizes: tuple[int, ...], form: str, packed: bool) -> None:
    inputs = inputs_of(sizes, form)
    segments = torch.arange(sizes[1]).div(3, rounding_mode="floor").expand(sizes[0], -1) if packed else None
    found = run(together, inputs, segment_ids=segments)
    for one, exact in zip(found, run(separately, inputs, torch.float64, segment_ids=segments), strict=True):
        assert_close(one, exact, 1e-5)


@needs_kernels
@pytest.mark.parametrize("form", DELTAS[:3])
def test_a_strong_decay_and_rows_of_zeros(form: str) -> None:
    inputs = inputs_of((2, 14, 2, 20, 13), form)
    inputs["k"][:, 4:9], inputs["q"][:, 6:8] = 0.0, 0.0
    if "g" in inputs:
        inputs["g"][:, 3::4] = -50.0
    for one, exact in zip(run(together, inputs), run(separately, inputs, torch.float64), strict=True):
        assert_close(one, exact, 1e-5)


@needs_kernels
@pytest.mark.parametrize("form", DELTAS[:3])
def test_threads_and_later_tokens_do_not_move_a_bit(form: str) -> None:
    inputs, before, found = inputs_of((2, 23, 3, 20, 13), form), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run(together, inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))
    for x in inputs.values():
        x[:, 10:] = x[:, 10:] - 1.0 if len(x) == 2 and x.shape[1] == 23 else x[:, 10:]
    assert torch.equal(run(together, inputs)[0][:, :10], found[0][0][:, :10])


@needs_kernels
def test_what_is_no_number_stays_none() -> None:
    inputs = inputs_of((1, 9, 2, 20, 13), DELTAS[0])
    inputs["k"][0, 4, 1, 3] = torch.nan
    y = run(together, inputs)[0]
    assert y[0, :, 0].isfinite().all() and y[0, :4, 1].isfinite().all() and y[0, 4:, 1].isnan().all()


@pytest.mark.parametrize("form", DELTAS[:3])
def test_all_forms_have_the_same_norms(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    inputs = {name: x.double() for name, x in inputs_of((2, 5, 2, 20, 13), form).items()}
    expected = separately(**inputs)[0]
    for call in (delta_rule, delta_rule.naive, delta_rule.chunk):
        assert_close(call(**inputs, unit_eps=EPS, scale=SCALE)[0], expected, 1e-12)
    one = {name: x if name == "initial_state" else x[:, :1] for name, x in inputs.items()}
    assert_close(delta_rule.step(**one, unit_eps=EPS, scale=SCALE)[0], expected[:, :1], 1e-12)
