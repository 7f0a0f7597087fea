"""On a CPU attention over few keys is computed in fp32 where the model is in bf16 and there is no kernel for it,
in training and in scoring alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_arch.layers.attention_product import SHORT
from tests.suite.models import perturbed_model, token_ids


@pytest.fixture
def computed_in(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes that torch's attention computes in, where it takes the kernel's place."""
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    seen: list[torch.dtype] = []
    plain = F.scaled_dot_product_attention

    def noting(query: Tensor, *others: Any, **options: Any) -> Tensor:
        out = plain(query, *others, **options)
        seen.append(out.dtype)
        return out

    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    return seen


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("length", "dtype"), [(SHORT, torch.float32), (SHORT + 1, torch.bfloat16)])
def test_few_keys_are_fp32(
    length: int, dtype: torch.dtype, autocast: bool, training: bool, computed_in: list[torch.dtype]
) -> None:
    model = perturbed_model("llama", max_position_embeddings=256)
    model = model if autocast else model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(training):
        logits = model(token_ids(2, length), use_cache=False).logits
    assert set(computed_in) == {dtype}
    assert logits.dtype == torch.bfloat16


def test_one_token_and_fp32_are_left_alone(computed_in: list[torch.dtype]) -> None:
    model, ids = perturbed_model("llama"), token_ids(1, 9)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = model(ids, use_cache=True).past_key_values
        computed_in.clear()
        model(ids[:, :1], past_key_values=cache)
    assert set(computed_in) == {torch.bfloat16}
    computed_in.clear()
    model(ids)
    assert set(computed_in) == {torch.float32}


@pytest.mark.parametrize("mask", [None, "padding"])
def test_it_is_nearer_to_fp32(mask: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = perturbed_model("llama"), token_ids(2, 33)
    given = {} if mask is None else {"attention_mask": torch.ones_like(ids).index_fill_(1, torch.arange(3), 0)}
    exact = model(ids, **given, use_cache=False).logits
    errors = []
    with torch.autocast("cpu", torch.bfloat16):
        by_kernel = model(ids, **given, use_cache=False).logits
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    for short in (SHORT, 0):
        monkeypatch.setattr("hf_arch.layers.attention_product.SHORT", short)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(ids, **given, use_cache=False).logits
        errors.append(float((found.float() - exact)[:, 3:].square().mean()))
    assert errors[0] < 1.2 * errors[1]
    assert float((by_kernel.float() - exact)[:, 3:].square().mean()) < 1.2 * errors[1]


@pytest.mark.parametrize("autocast", [True, False])
def test_fp64_stays_fp64(autocast: bool, computed_in: list[torch.dtype]) -> None:
    model = perturbed_model("llama").double()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(token_ids(2, 9), use_cache=False).logits
    assert set(computed_in) == {torch.float64} and logits.dtype == torch.float64
