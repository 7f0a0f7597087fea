"""Each option of attention against its formula, with caches and padding right, and refused where it cannot act."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LagunaConfig,
    StaticCache,
)
from transformers.models.laguna.modeling_laguna import LagunaAttention

import hf_arch
from hf_arch.checks import check_model
from hf_arch.core.errors import ConfigError
from hf_arch.layers.mixers.attention import Attention
from tests.suite.models import close, perturbed_model, token_ids

OPTIONS: list[dict[str, Any]] = [
    {"output_gate": "elementwise"},
    {"output_gate": "headwise"},
    {"sinks": True},
    {"sinks": True, "softcap": 3.0},
    {"sinks": True, "window": 5},
    {"exclusive": True},
    {"exclusive": True, "exclusive_strength": "learned"},
    {"output_gate": "headwise", "gate_activation": "softplus"},
    {"temperature": 0.5, "temperature_step": 3, "position": "none"},
    {"forget_gate": True},
    {"forget_gate": True, "window": 5},
    {"position": "none"},
    {"qk_norm_over": "all"},
    {"value_residual": "mean"},
    {"value_residual": "learned"},
    {"exclusive": True, "output_gate": "headwise", "sinks": True, "forget_gate": True, "value_residual": "learned"},
]


def _mixer(options: dict[str, Any]) -> dict[str, Any]:
    return {"type": "attention", "num_kv_heads": 2, **options}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_option_keeps_the_invariants(options: dict[str, Any]) -> None:
    config = hf_arch.tiny_config("llama", mixer=_mixer(options), num_hidden_layers=2)
    assert [result for result in check_model(config) if not result.passed] == []


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_option_acts_and_eager_agrees_with_sdpa(options: dict[str, Any]) -> None:
    ids = token_ids(2, 11)
    model = perturbed_model("llama", mixer=_mixer(options))
    logits = model(ids).logits
    assert not torch.allclose(logits, perturbed_model("llama", mixer=_mixer({}))(ids).logits)
    model.set_attn_implementation("eager")
    close(model(ids).logits, logits, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", [*OPTIONS, {"softcap": 3.0}], ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_static_cache_gives_the_same(options: dict[str, Any], backend: str) -> None:
    """Its slots that nothing has filled are never seen, whichever form computes the product."""
    ids = token_ids(2, 17)
    model = perturbed_model("llama", mixer=_mixer(options))
    model.set_attn_implementation(backend)
    whole = model(ids, use_cache=False).logits
    cache = StaticCache(config=model.config, max_cache_len=24)
    close(torch.cat([model(part, past_key_values=cache).logits for part in ids.split([7, 1, 9], 1)], 1), whole, 1e-5)


def _layer(**options: Any) -> tuple[Attention, Tensor]:
    """One attention layer without positions, and its input [2, 7, D]."""
    model = perturbed_model("llama", mixer=_mixer(options), position="none", qk_norm=False, attention_bias=False)
    torch.manual_seed(0)
    return model.model.layers[0].mixer, torch.randn(2, 7, model.config.hidden_size)


def _by_hand(layer: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores masked by -inf [B, H, T, T], own values [B, H, T, K], and the lower triangle."""
    shape, groups = (2, 7, -1, layer.head_dim), layer.num_heads // layer.num_kv_heads
    query, key, value = (
        projection(x).view(shape).transpose(1, 2) for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    return (query @ key.mT * layer.head_dim**-0.5).masked_fill(~causal, -torch.inf), value, causal


def _project(layer: Attention, out: Tensor) -> Tensor:
    return layer.o_proj(out.transpose(1, 2).flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("activation", ["sigmoid", "softplus"])
@pytest.mark.parametrize("form", ["elementwise", "headwise"])
def test_output_gate(form: str, activation: str) -> None:
    layer, x = _layer(output_gate=form, gate_activation=activation)
    scores, value, _ = _by_hand(layer, x)
    out = scores.softmax(-1) @ value
    act = torch.sigmoid if activation == "sigmoid" else torch.nn.functional.softplus
    gate = act(x @ layer.g_proj.weight.T).view(2, 7, layer.num_heads, -1).transpose(1, 2)
    assert gate.shape[-1] == (layer.head_dim if form == "elementwise" else 1)
    close(layer(x), _project(layer, out * gate), 1e-5)


@torch.no_grad()
def test_sinks() -> None:
    layer, x = _layer(sinks=True)
    assert layer.sinks is not None and layer.sinks.std() > 0
    scores, value, _ = _by_hand(layer, x)
    sink = layer.sinks.exp()[:, None, None]
    close(layer(x), _project(layer, scores.exp() / (sink + scores.exp().sum(-1, keepdim=True)) @ value), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("strength", ["full", "learned"])
def test_exclusive(strength: str) -> None:
    layer, x = _layer(exclusive=True, exclusive_strength=strength)
    scores, value, _ = _by_hand(layer, x)
    out = scores.softmax(-1) @ value
    along = (out * value).sum(-1, keepdim=True) / value.square().sum(-1, keepdim=True)
    if strength == "learned":
        along = along * torch.tanh(x @ layer.strength_proj.weight.T).transpose(1, 2).unsqueeze(-1)
    close(layer(x), _project(layer, out - along * value), 1e-5)


@torch.no_grad()
def test_queries_grow_with_position() -> None:
    layer, x = _layer(temperature=0.5, temperature_step=3)
    scores, value, _ = _by_hand(layer, x)
    growth = torch.tensor([1 + 0.5 * math.log(1 + (position + 1) // 3) for position in range(7)])
    close(layer(x), _project(layer, (scores * growth[:, None]).softmax(-1) @ value), 1e-5)


@torch.no_grad()
def test_a_softplus_gate_is_transformers_lagunas() -> None:
    """Of a head at a time, before the output projection, in fp32."""
    layer, x = _layer(output_gate="headwise", gate_activation="softplus")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 97}
    kinds = {"gating": "per-head", "layer_types": ["full_attention"], "num_attention_heads_per_layer": [4]}
    config = LagunaConfig(**sizes, **kinds, mlp_layer_types=["dense"], num_hidden_layers=1)
    config._attn_implementation = "eager"
    theirs = LagunaAttention(config, 0, 4).eval()
    own = {name: weight for name, weight in layer.state_dict().items() if "norm" not in name}
    assert {*own} == {name for name in theirs.state_dict() if "norm" not in name}
    theirs.load_state_dict(own, strict=False)
    theirs.q_norm = theirs.k_norm = torch.nn.Identity()
    mask = torch.full((7, 7), torch.finfo(torch.float32).min).triu(1).expand(2, 1, -1, -1)
    still = torch.ones(1, 7, 8), torch.zeros(1, 7, 8)
    close(layer(x), theirs(x, position_embeddings=still, attention_mask=mask)[0], 1e-5)


@torch.no_grad()
def test_forget_gate() -> None:
    layer, x = _layer(forget_gate=True)
    scores, value, _ = _by_hand(layer, x)
    gates = torch.nn.functional.logsigmoid(layer.f_proj(x))
    for i in range(7):
        for j in range(i):
            scores[:, :, i, j] += gates[:, j + 1 : i + 1].sum(1)
    close(layer(x), _project(layer, scores.softmax(-1) @ value), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("form", ["mean", "learned"])
def test_value_residual_reads_the_first_layers_values(form: str) -> None:
    model, ids = perturbed_model("llama", mixer=_mixer({"value_residual": form})), token_ids(1, 6)
    seen: dict[int, Tensor] = {}
    for index, block in enumerate(model.model.layers):
        block.mixer.product.register_forward_pre_hook(
            lambda module, given, index=index: seen.__setitem__(index, given[2])
        )
    own: dict[int, Tensor] = {}
    for index, block in enumerate(model.model.layers):
        block.mixer.v_proj.register_forward_hook(lambda module, given, out, index=index: own.__setitem__(index, out))
    model(ids)
    first, second = (own[i].view(1, 6, 2, -1).transpose(1, 2) for i in (0, 1))
    mix = model.model.layers[1].mixer.value_mix
    weights = (0.5, 0.5) if mix is None else mix.tolist()
    close(seen[0], first, 1e-6)
    close(seen[1], weights[0] * first + weights[1] * second, 1e-6)


@torch.no_grad()
def test_nope_in_one_layer_is_a_model_without_positions_there() -> None:
    model, ids = perturbed_model("llama", mixer=[_mixer({}), _mixer({"position": "none"})]), token_ids(1, 6)
    assert [index is None for index in model.model._rotary_index] == [False, True]
    everywhere = perturbed_model("llama", mixer=_mixer({"position": "none"}))
    close(everywhere(ids).logits, perturbed_model("llama", mixer=_mixer({}), position="none")(ids).logits, 1e-6)


def _copy(theirs: Any, model: Any) -> None:
    """A Llama-like model of transformers, perturbed, and its parameters put into ours."""
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    state = theirs.state_dict()
    names = {
        "mixer": "self_attn",
        "mixer_norm": "input_layernorm",
        "ffn": "mlp",
        "ffn_norm": "post_attention_layernorm",
    }
    for name, parameter in model.named_parameters():
        parameter.copy_(state[".".join(names.get(part, part) for part in name.split("."))])


@torch.no_grad()
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (8, 4)])
def test_differential_is_transformers_diffllama(heads: int, kv_heads: int) -> None:
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 64}
    torch.manual_seed(0)
    theirs = DiffLlamaForCausalLM(DiffLlamaConfig(**sizes, rms_norm_eps=1e-6, tie_word_embeddings=False)).eval()
    model = perturbed_model("differential", **sizes, norm_eps=1e-6, tie_word_embeddings=False)
    _copy(theirs, model)
    ids = token_ids(2, 13)
    close(model(ids).logits, theirs(ids).logits, 2e-5)


@torch.no_grad()
def test_multipliers_are_transformers_granite() -> None:
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    given = {"embedding_multiplier": 6.0, "residual_multiplier": 0.3, "logits_scaling": 4.0}
    torch.manual_seed(0)
    theirs = GraniteForCausalLM(GraniteConfig(**sizes, **given, attention_multiplier=0.2, rms_norm_eps=1e-6)).eval()
    mixer = {"type": "attention", "scale": 0.2}
    model = perturbed_model("llama", **sizes, **given, mixer=mixer, norm_eps=1e-6, qk_norm=False, attention_bias=False)
    _copy(theirs, model)
    ids = token_ids(2, 13)
    close(model(ids).logits, theirs(ids).logits, 2e-5)


@pytest.mark.parametrize(
    ("mixer", "line"),
    [
        ([_mixer({"value_residual": "mean"}), "gla"], "value_residual: 'mean' would have no effect in a single layer"),
        ({"type": "attention", "output_gate": "both"}, "output_gate"),
        (
            {"type": "attention", "gate_activation": "softplus"},
            "'softplus' would have no effect with output_gate",
        ),
        (
            {"type": "attention", "temperature_step": 4},
            "temperature_step: 4 would have no effect with temperature None",
        ),
        ({"type": "attention", "temperature": 0.0}, "temperature: 0.0 is not allowed; use a number above 0, or None"),
        ({"type": "attention", "exclusive_strength": "learned"}, "'learned' would have no effect with exclusive False"),
        ({"type": "attention", "scale": 0.0}, "scale: 0.0 is not allowed; use a number above 0"),
        ({"type": "attention", "softcap": -1.0}, "softcap: -1.0 is not allowed"),
        ({"type": "differential", "num_kv_heads": 1}, "num_key_value_heads: 1 is odd"),
        ({"type": "forgetting_transformer", "forget_gate": False}, "forget_gate: False is not FoX"),
        ({"type": "nsa", "block_counts": 2}, "mixer nsa: block_counts 2 is not allowed"),
        ({"type": "moba", "topk": 0}, "mixer moba: topk 0 is not allowed"),
    ],
    ids=str,
)
def test_what_cannot_act_is_refused(mixer: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        hf_arch.tiny_config("llama", mixer=mixer, num_hidden_layers=2)


def test_cost_counts_gates_in_the_cache() -> None:
    plain = hf_arch.cost(hf_arch.tiny_config("llama", mixer=_mixer({})), 64)
    gated = hf_arch.cost(hf_arch.tiny_config("llama", mixer=_mixer({"forget_gate": True})), 64)
    config = hf_arch.tiny_config("llama", mixer=_mixer({}))
    extra = config.num_hidden_layers * config.num_attention_heads * 64 * 4
    assert gated.state_bytes(64) - plain.state_bytes(64) == extra


def test_a_static_cache_under_flex_attention_is_refused() -> None:
    """Its single steps see other slots than they should (transformers' Llama is off by 1e-2, too)."""
    config = hf_arch.tiny_config("llama")
    config._attn_implementation = "flex_attention"
    model = AutoModelForCausalLM.from_config(config).eval()
    cache = StaticCache(config=model.config, max_cache_len=16)
    with pytest.raises(ValueError, match=r"static cache is not supported under .*flex_attention; use sdpa or eager"):
        model(torch.ones(1, 3, dtype=torch.long), past_key_values=cache)
