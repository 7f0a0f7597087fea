"""Attention of one token by its kernel: the numbers of the usual way, and only where nothing else is to be done."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_arch.ops.one_row import RowKernels
from tests.ops.test_native import needs_kernels
from tests.suite.models import perturbed_model, token_ids

pytestmark = needs_kernels
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were held at each call of the kernel."""
    made: list[int] = []
    attend = RowKernels.attend

    def counted(self: RowKernels, *given: Any) -> Tensor:
        made.append(given[6])
        return attend(self, *given)

    monkeypatch.setattr(RowKernels, "attend", counted)
    return made


@torch.no_grad()
def stepped(model: nn.Module, ids: Tensor, first: int = 4, cache: Any = None) -> tuple[Tensor, Any]:
    """Logits [1, T - first + 1, V] by steps of one token behind the first ones, and the cache."""
    out = model(ids[:, :first], use_cache=True, past_key_values=cache)
    logits = [out.logits[:, -1:]]
    for place in range(first, ids.shape[1]):
        out = model(ids[:, place : place + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, 1), out.past_key_values


@pytest.mark.parametrize("length", [8, 80])  # with and without a larger buffer on the way
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("gqa", {}),
        ("gpt2", {}),
        ("moe", {}),
        ("llama", {"qk_norm": False}),
        ("llama", {"mixer": {"type": "attention", "qk_norm_over": "all"}}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mixer": {"type": "attention", "scale": 0.2}}),
        ("llama", {"mixer": {"type": "attention", "position": "none"}}),
        ("llama", {"mixer": {"type": "attention", "rope_theta": 100.0}}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
        ("llama", {"norm": "layernorm", "hidden_act": "gelu"}),
    ],
)
def test_steps_are_the_whole(name: str, options: dict[str, Any], length: int, calls: list[int]) -> None:
    model, ids = perturbed_model(name, **options).eval(), token_ids(1, length)
    logits, cache = stepped(model, ids)
    layers = len(model.model.layers)
    assert calls == [place for place in range(4, length) for _ in range(layers)]
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits[:, 3:]
    torch.testing.assert_close(logits, whole, **CLOSE)
    assert cache.get_seq_length() == length


@pytest.mark.parametrize(
    "options",
    [
        {"sliding_window": 5},
        {"attn_logit_softcapping": 5.0},
        {"position": "alibi"},
        {"mixer": {"type": "attention", "sinks": True}},
        {"mixer": {"type": "attention", "forget_gate": True}},
        {"mixer": {"type": "attention", "exclusive": True}},
        {"mixer": {"type": "attention", "output_gate": "headwise"}},
        {"mixer": {"type": "attention", "temperature": 0.1, "temperature_step": 3}},
        {"mixer": {"type": "attention", "value_residual": "mean"}},
        {"mixer": "mla", "qk_norm": False},
        {"sites": [{"type": "canon", "at": ["qkv"]}]},
    ],
)
def test_any_other_attention_goes_the_usual_way(options: dict[str, Any], calls: list[int]) -> None:
    model, ids = perturbed_model("llama", **options).eval(), token_ids(1, 9)
    logits, _ = stepped(model, ids)
    assert not calls
    with torch.no_grad():
        torch.testing.assert_close(logits, model(ids, use_cache=False).logits[:, 3:], **CLOSE)


def _hook_the_product(model: Any) -> None:
    for layer in model.model.layers:
        layer.mixer.product.register_forward_hook(lambda module, given, out: (2 * out[0], out[1]))


def _hook_a_projection(model: Any) -> None:
    for layer in model.model.layers:
        layer.mixer.v_proj.register_forward_hook(lambda module, given, out: 2 * out)


def _take_eager(model: Any) -> None:
    model.set_attn_implementation("eager")


def _override_a_stage(model: Any) -> None:
    for layer in model.model.layers:
        mixer = layer.mixer
        kind = type("Mine", (type(mixer),), {"warmed": lambda self, query, context: 2 * query})
        layer.mixer = kind(mixer.config, mixer.options, mixer.layer_idx).eval()
        layer.mixer.load_state_dict(mixer.state_dict())


def _set_a_soft_cap(model: Any) -> None:
    for layer in model.model.layers:
        layer.mixer.softcap = 0.5


def _put_a_stage_on_the_layer(model: Any) -> None:
    for layer in model.model.layers:
        layer.mixer.warmed = lambda query, context: 2 * query


def _put_another_product(model: Any) -> None:
    for layer in model.model.layers:
        product = layer.mixer.product
        usual = type(product).forward

        def forward(self: Any, query: Tensor, *given: Any, usual: Any = usual, **more: Any) -> Any:
            return usual(self, 2 * query, *given, **more)

        product.__class__ = type("Mine", (type(product),), {"forward": forward})


CHANGES = [_hook_the_product, _hook_a_projection, _take_eager, _override_a_stage, _set_a_soft_cap]


@pytest.mark.parametrize("change", [*CHANGES, _put_a_stage_on_the_layer, _put_another_product])
def test_whatever_is_put_around_a_stage_runs(change: Any, calls: list[int]) -> None:
    model, ids = perturbed_model("llama").eval(), token_ids(1, 9)
    change(model)
    logits, _ = stepped(model, ids)
    assert not calls
    with torch.no_grad():
        torch.testing.assert_close(logits, model(ids, use_cache=False).logits[:, 3:], **CLOSE)


def test_a_function_of_attention_that_somebody_put_in_place_runs(calls: list[int]) -> None:
    model, ids = perturbed_model("llama").eval(), token_ids(1, 9)
    usual, seen = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def theirs(*given: Any, **options: Any) -> Any:
        seen.append(True)
        return usual(*given, **options)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = theirs
    try:
        stepped(model, ids)
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = usual
    assert not calls
    assert len(seen) == 6 * len(model.model.layers)


@torch.no_grad()
def test_attentions_and_padding_are_followed(calls: list[int]) -> None:
    model, ids = perturbed_model("llama").eval(), token_ids(1, 9)
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    out = model(ids[:, :6], attention_mask=mask[:, :6], use_cache=True)
    for place in range(6, 9):
        given = {"attention_mask": mask[:, : place + 1], "past_key_values": out.past_key_values}
        out = model(ids[:, place : place + 1], use_cache=True, **given)
    alone = model(ids[:, 2:], use_cache=False).logits[:, -1:]
    torch.testing.assert_close(out.logits, alone, **CLOSE)
    assert not calls


@torch.no_grad()
def test_a_cache_that_was_cut_copied_or_kept_holds_what_it_held(calls: list[int]) -> None:
    model, ids = perturbed_model("llama").eval(), token_ids(1, 12)
    _, cache = stepped(model, ids[:, :9])
    kept = [layer.keys for layer in cache.layers]
    values = [keys.clone() for keys in kept]
    branch = copy.deepcopy(cache)
    one = model(ids[:, 9:10], past_key_values=cache, use_cache=True).logits
    other = model(ids[:, 10:11], past_key_values=branch, use_cache=True).logits
    assert all(torch.equal(*pair) for pair in zip(kept, values, strict=True))
    again = torch.cat((ids[:, :9], ids[:, 10:11]), 1)
    torch.testing.assert_close(one, model(ids[:, :10], use_cache=False).logits[:, -1:], **CLOSE)
    torch.testing.assert_close(other, model(again, use_cache=False).logits[:, -1:], **CLOSE)
    cache.crop(-2)
    for place in (10, 11):
        out = model(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
    whole = torch.cat((ids[:, :8], ids[:, 10:12]), 1)
    torch.testing.assert_close(out.logits, model(whole, use_cache=False).logits[:, -1:], **CLOSE)
