"""Every architecture on the GPU: against its CPU fp32 result, the invariants of a sequence model, and generation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_arch
from hf_arch import checks
from tests.gpu.errors import worst_error
from tests.suite.models import ARCHITECTURES, token_ids

FP32_TOLERANCE = 1e-4
BF16_SLACK = 2.0
"""bf16 on the GPU may be so many times as far from fp32 as bf16 on the CPU is (and `BF16_FLOOR` in any case)."""
BF16_FLOOR = 2e-2
LENGTH = 150

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]
architectures = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ARCHITECTURES]
)
backends = pytest.mark.parametrize("backend", ["torch", "fla"], indirect=True)


def model_of(name: str) -> Any:
    """Heads of 64, as models have them; no dropout, since devices draw differently."""
    config = hf_arch.tiny_config(
        name,
        hidden_size=256,
        num_attention_heads=4,
        embedding_dropout=0.0,
        residual_dropout=0.0,
        attention_dropout=0.0,
    )
    return checks.perturbed_model(config).train()


def results(name: str, device: torch.device, bf16: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits of two rows, one of them packed with documents, and the gradients of the loss; all on the CPU."""
    model, ids = model_of(name).to(device), token_ids(2, LENGTH).to(device)
    positions = (torch.arange(LENGTH) % torch.tensor([[LENGTH], [61]])).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        output = model(ids, position_ids=positions, labels=ids, use_cache=False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(output.loss, parameters, allow_unused=True)
    return output.logits.float().cpu(), tuple(
        torch.zeros_like(parameter, device="cpu") if grad is None else grad.cpu()
        for parameter, grad in zip(parameters, gradients, strict=True)
    )


@functools.lru_cache(maxsize=4)
def on_cpu(name: str, bf16: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    return results(name, torch.device("cpu"), bf16)


def whole(gradients: tuple[Tensor, ...]) -> Tensor:
    """All gradients as one vector: a parameter counts by how much the loss moves with it."""
    return torch.cat([gradient.flatten() for gradient in gradients])


@architectures
@backends
def test_fp32_equals_the_cpu(name: str, backend: str, device: torch.device, measured: Callable) -> None:
    logits, gradients = results(name, device, bf16=False)
    expected, expected_gradients = on_cpu(name, False)
    measured("logits", logits, expected, FP32_TOLERANCE)
    scale = whole(expected_gradients).square().mean().sqrt()
    measured("gradients", whole(gradients) / scale, whole(expected_gradients) / scale, FP32_TOLERANCE)


@architectures
@backends
def test_bf16_is_as_near_to_fp32_as_on_the_cpu(
    name: str, backend: str, device: torch.device, measured: Callable
) -> None:
    expected, expected_gradients = on_cpu(name, False)
    scale = whole(expected_gradients).square().mean().sqrt()
    usual, usual_gradients = on_cpu(name, True)
    logits, gradients = results(name, device, bf16=True)
    allowed = max(BF16_FLOOR, BF16_SLACK * worst_error(usual, expected))
    measured("logits", logits, expected, allowed)
    pair = (whole(usual_gradients) / scale, whole(expected_gradients) / scale)
    measured("gradients", whole(gradients) / scale, pair[1], max(BF16_FLOOR, BF16_SLACK * worst_error(*pair)))


@architectures
@backends
def test_the_invariants_hold(name: str, backend: str, device: torch.device) -> None:
    failed = [
        f"{result.name}: {result.found}"
        for result in checks.check_model(hf_arch.tiny_config(name), device=device)
        if not result.passed
    ]
    assert not failed, "; ".join(failed)


@architectures
def test_generation_from_a_static_cache(name: str, device: torch.device) -> None:
    """The same tokens as from a growing cache, one of the prompts padded on the left."""
    model = checks.perturbed_model(hf_arch.tiny_config(name)).to(device)
    ids = token_ids(2, 12).to(device)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    options: dict[str, Any] = {
        "attention_mask": mask,
        "max_new_tokens": 9,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    expected = model.generate(ids, **options)
    static = model.generate(ids, cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(static, expected)
