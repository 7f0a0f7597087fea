"""The adapters to flash-linear-attention's kernels give what our recurrences give: outputs, final states, gradients.

The kernels run under Triton's interpreter, so no GPU is needed; `README.md` says how.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_arch.models.loss import penalise_max_logits
from hf_arch.ops.delta_rule import delta_rule, dplr_delta_rule
from hf_arch.ops.elementwise import hgrn_scan
from hf_arch.ops.linear_attention import linear_attention
from hf_arch.ops.slots import abc_attention, gated_slot_attention
from hf_arch.ops.ssd import ssd
from tests.ops.recurrences import assert_close, with_gradients

pytestmark = [pytest.mark.fla_interpreter, pytest.mark.timeout(900)]
B, T, H, K, V, M = 2, 37, 2, 16, 32, 16


@pytest.fixture(scope="module", autouse=True)
def kernels():
    pytest.importorskip("triton", reason="needs triton and flash-linear-attention, in an environment of their own")
    pytest.importorskip("fla", reason="needs flash-linear-attention, in an environment of its own")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape)


def log_decay(*shape: int) -> Tensor:
    return F.logsigmoid(torch.randn(*shape)) / 4


def linear_inputs(decay: Tensor | None) -> tuple:
    return normal(B, T, H, K), normal(B, T, H, K), normal(B, T, H, V), decay


def state(*shape: int) -> Tensor:
    return torch.randn(B, H, *shape)


def dplr_inputs() -> tuple:
    removal = F.normalize(normal(B, T, H, K), dim=-1)
    rate = torch.rand(B, T, H, K)
    return (
        normal(B, T, H, K),
        -0.6 * torch.rand(B, T, H, K),
        normal(B, T, H, K),
        normal(B, T, H, V),
        -removal,
        removal * rate,
    )


def delta_inputs(gated: bool) -> tuple:
    keys = F.normalize(normal(B, T, H, K), dim=-1)
    g = log_decay(B, T, H) if gated else None
    return normal(B, T, H, K), keys, normal(B, T, H, V), torch.rand(B, T, H), g


def bonus_op(op):
    """The bonus as a last input, so that its gradient is compared as well."""

    def call(q: Tensor, k: Tensor, v: Tensor, g: Tensor, bonus: Tensor, **options) -> tuple:
        return op(q, k, v, g, bonus=bonus, **options)

    return call


def constant_decay(op):
    decay = torch.log(1 - 2.0 ** -torch.arange(5, 5 + H))
    return lambda q, k, v, **options: op(q, k, v, decay, **options)


def scaled(op, scale: float):
    return functools.partial(op, scale=scale)


def ssd_inputs() -> tuple:
    A = -0.1 - torch.rand(H)
    return normal(B, T, H, V), torch.rand(B, T, H), A, normal(B, T, 1, K), normal(B, T, 1, K), normal(H)


def forms(op) -> tuple:
    return op.kernel, op.naive


LINEAR = forms(linear_attention)
DELTA = forms(delta_rule)
CASES = {
    "linear attention": (*LINEAR, lambda: (linear_inputs(None), state(K, V))),
    "retention": (*map(constant_decay, LINEAR), lambda: (linear_inputs(None)[:3], state(K, V))),
    "scalar decay": (*LINEAR, lambda: (linear_inputs(log_decay(B, T, H)), state(K, V))),
    "vector decay": (*LINEAR, lambda: (linear_inputs(log_decay(B, T, H, K)), state(K, V))),
    "vector decay, scaled": (
        *(scaled(op, 0.7) for op in LINEAR),
        lambda: (linear_inputs(log_decay(B, T, H, K)), state(K, V)),
    ),
    "bonus": (
        *map(bonus_op, LINEAR),
        lambda: ((*linear_inputs(log_decay(B, T, H, K)), normal(H, K)), state(K, V)),
    ),
    "delta rule": (*DELTA, lambda: (delta_inputs(False), state(K, V))),
    "gated delta rule": (*DELTA, lambda: (delta_inputs(True), state(K, V))),
    "dplr delta rule": (
        *forms(dplr_delta_rule),
        lambda: (dplr_inputs(), state(K, V)),
    ),
    "slots": (
        *forms(gated_slot_attention),
        lambda: (
            (*linear_inputs(torch.rand(B, T, H, M)), log_decay(B, T, H, M)),
            (state(K, M), state(M, V)),
        ),
    ),
    "slots by softmax": (
        *forms(abc_attention),
        lambda: (
            (*linear_inputs(None)[:3], normal(B, T, H, M)),
            (state(M), state(K, M), state(M, V)),
        ),
    ),
    "elementwise": (
        *forms(hgrn_scan),
        lambda: ((normal(B, T, V), torch.rand(B, T, V)), torch.randn(B, V)),
    ),
    "state space duality": (*forms(ssd), lambda: (ssd_inputs(), state(V, K))),
}


@pytest.mark.parametrize("documents", [False, True], ids=["rows", "documents"])
@pytest.mark.parametrize("case", CASES)
def test_adapter_equals_the_recurrence(case: str, documents: bool) -> None:
    adapter, naive, make = CASES[case]
    inputs, initial = make()
    segments = None
    if documents:  # one row of three documents, one of two, the first of them a single token
        segments = torch.zeros(B, T, dtype=torch.long)
        segments[0, 9:] += 1
        segments[0, 30:] += 1
        segments[1, 1:] += 1
    options = {"initial_state": initial, "segment_ids": segments}
    expected = with_gradients(naive, inputs, **options)
    assert_close(with_gradients(adapter, inputs, **options), expected, 1e-4)


def test_ungated_delta_rule_in_half_precision() -> None:
    """Its kernel refuses fp32."""
    half = [None if x is None else x.half() for x in delta_inputs(False)]
    options = {"initial_state": state(K, V), "output_final_state": True}
    expected = delta_rule.naive(*(None if x is None else x.float() for x in half), **options)
    assert_close(delta_rule.kernel(*half, **options), expected, 5e-3)


def test_the_penalty_of_the_largest_logits_is_their_l2warp() -> None:
    from fla.modules.l2warp import l2_warp

    logits, weights = normal(2, 5, 11).requires_grad_(), normal(2, 5, 11)
    theirs, mine = (
        torch.autograd.grad(wrap((logits * weights).sum(), logits, 1e-4), logits)
        for wrap in (l2_warp, penalise_max_logits)
    )
    assert_close(mine, theirs, 1e-7)
