"""Keys and values shared across layers: one formula, every invariant, a smaller cache, and mistakes said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, StaticCache

import hf_arch
from hf_arch.checks import cache_bytes, check_model
from hf_arch.core.errors import ConfigError
from tests.suite.models import close, perturbed_model, token_ids

SHARED = {"type": "attention", "kv": "shared"}
WINDOW = {"type": "attention", "window": 5}
BY_WINDOW = {"type": "attention", "kv": "shared_by_window"}
LAST_OF_ITS_KIND = [WINDOW, "attention", {**WINDOW, "kv": "shared_by_window"}, BY_WINDOW]
CHOICES: list[dict[str, Any]] = [
    {"mixer": ["attention", SHARED]},
    {"mixer": ["attention", SHARED], "num_key_value_heads": 2, "qk_norm": True},
    {"mixer": ["attention", SHARED, SHARED, "attention"], "position": "alibi"},
    {"mixer": [WINDOW, {**WINDOW, "kv": "shared"}, "attention", SHARED], "position": "alibi"},
    {"mixer": ["attention", "gla", SHARED, {**SHARED, "exclusive": True, "output_gate": "headwise", "sinks": True}]},
    {"mixer": [{"type": "attention", "forget_gate": True, "value_residual": "learned"}, SHARED]},
    {"mixer": ["attention", {"type": "differential", "kv": "shared"}]},
    {"mixer": LAST_OF_ITS_KIND},
    {"mixer": [*LAST_OF_ITS_KIND, {**SHARED, "exclusive": True}], "num_hidden_layers": 5, "position": "alibi"},
    {"mixer": ["attention", SHARED], "depth": {"type": "loop", "start": 1, "end": 4}},
    {"mixer": ["attention", SHARED], "stream": {"type": "hyper", "streams": 2}, "embeddings": "smear"},
    {"mixer": ["attention", SHARED], "sites": {"type": "canon", "at": ["mixer_input"]}},
]


def config_of(changes: dict[str, Any], **more: Any) -> Any:
    return hf_arch.tiny_config("mixed", **{"num_hidden_layers": 4, **changes, **more})


@pytest.mark.sampled(2)
@pytest.mark.parametrize("changes", CHOICES, ids=str)
def test_every_invariant(changes: dict[str, Any]) -> None:
    assert [result for result in check_model(config_of(changes)) if not result.passed] == []


@torch.no_grad()
@pytest.mark.parametrize("changes", CHOICES, ids=str)
def test_static_caches_and_eager_give_the_same(changes: dict[str, Any]) -> None:
    ids = token_ids(2, 17)
    model = perturbed_model("mixed", **{"num_hidden_layers": 4, **changes})
    whole = model(ids, use_cache=False).logits
    cache = StaticCache(config=model.config, max_cache_len=24)
    close(torch.cat([model(part, past_key_values=cache).logits for part in ids.split([7, 1, 9], 1)], 1), whole)
    model.set_attn_implementation("eager")
    close(model(ids, use_cache=False).logits, whole, 1e-5)


@torch.no_grad()
def test_it_is_attention_with_the_earlier_layers_projections() -> None:
    """The first layers of two models are alike; the keys of a second layer of its own are made from the first's."""
    model = perturbed_model("llama", mixer=["attention", SHARED], num_hidden_layers=2, position="none", qk_norm=False)
    first, second = (layer.mixer for layer in model.model.layers)
    heads, width, ids = first.num_heads, first.head_dim, token_ids(2, 9)
    seen: dict[str, torch.Tensor] = {}
    for name, layer in zip(("first", "second"), model.model.layers, strict=True):
        layer.mixer.register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: args[0], f"{name}_out": out}), always_call=True
        )
    model(ids)
    query = second.q_proj(seen["second"]).view(2, 9, heads, width).transpose(1, 2)
    groups = heads // first.num_kv_heads
    key, value = (
        projection(seen["first"]).view(2, 9, -1, width).transpose(1, 2).repeat_interleave(groups, 1)
        for projection in (first.k_proj, first.v_proj)
    )
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    scores = (query @ key.mT * width**-0.5).masked_fill(~causal, -torch.inf)
    expected = second.o_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    close(seen["second_out"], expected, 1e-5)


@torch.no_grad()
def test_the_last_layer_of_its_window_is_taken() -> None:
    """As Gemma 3n's last layers take those of the last earlier one of their type, over a window or over all tokens."""
    model = perturbed_model("mixed", num_hidden_layers=5, mixer=["attention", *LAST_OF_ITS_KIND])
    layers = [layer.mixer for layer in model.model.layers]
    seen: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(layers):
        layer.product.register_forward_pre_hook(lambda module, args, index=index: seen.update({index: args[1]}))
    model(token_ids(2, 9))
    assert [index for index, layer in enumerate(layers) if not hasattr(layer, "k_proj")] == [3, 4]
    assert torch.equal(seen[3], seen[1]) and torch.equal(seen[4], seen[2])


def test_cache_parameters_and_flops_are_counted() -> None:
    own, shared = (config_of({"mixer": mixer}) for mixer in ("attention", ["attention", SHARED]))
    costs = [hf_arch.cost(config, 21, batch_size=2) for config in (own, shared)]
    assert costs[1].state_bytes(21) * 2 == costs[0].state_bytes(21)
    layer = 2 * own.hidden_size * own.num_key_value_heads * own.head_dim
    assert costs[0].params_total - costs[1].params_total == 2 * layer
    model, ids = perturbed_model("mixed", num_hidden_layers=4, mixer=["attention", SHARED]), token_ids(2, 21)
    model.set_attn_implementation("eager")
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False)
    assert counter.get_total_flops() == pytest.approx(42 * costs[1].flops_per_token_forward, rel=1e-3)
    model(ids, past_key_values=cache)
    assert cache_bytes(cache) == costs[1].state_bytes(21)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": SHARED}, "layer 0 needs a layer of attention with kv 'own' before it"),
        ({"mixer": ["gla", SHARED]}, "layer 1 needs a layer of attention with kv 'own' before it"),
        ({"mixer": ["attention", {**BY_WINDOW, "window": 4}]}, "with kv 'own' and the same window before it"),
        ({"mixer": ["attention", {**SHARED, "window": 4}]}, "layer 1 has window 4, but layer 0"),
        ({"mixer": ["attention", {**SHARED, "num_kv_heads": 1}]}, "has KV heads and head_dim"),
        ({"mixer": ["attention", {**SHARED, "position": "none"}]}, "has rotation None"),
        ({"mixer": ["attention", {**SHARED, "rope_theta": 5.0}]}, "has rotation"),
        ({"mixer": ["attention", {**SHARED, "forget_gate": True}]}, "forget_gate: True needs keys and values"),
        ({"mixer": ["attention", {**SHARED, "value_residual": "mean"}]}, "value_residual: 'mean' needs keys"),
        ({"mixer": ["attention", {**SHARED, "kv": "borrowed"}]}, "kv: 'borrowed'"),
        ({"mixer": ["attention", SHARED], "sites": {"type": "canon", "at": ["qkv"]}}, "'qkv' is not a place"),
        ({"mixer": ["attention", SHARED], "embeddings": "value"}, "layer 1 .* has no values of its own"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(changes)


def test_a_checkpoint_that_cannot_say_it_refuses_it() -> None:
    model = perturbed_model("llama", mixer=["attention", SHARED], num_hidden_layers=2, qk_norm=False)
    with pytest.raises(ConfigError, match="kv: 'shared' cannot be expressed in a llama checkpoint"):
        hf_arch.to_foreign(model, "llama")
