"""Options of flash-linear-attention's configs that are easy to get wrong: what they mean here, and that they survive
the way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.interchange.base import FOREIGN, _convert_config
from tests.mixers.layers import build

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 61,
    "max_position_embeddings": 64,
}
IDS = torch.arange(2 * 13).view(2, 13) % 61


def _source(architecture: str, **overrides: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return hf_arch.to_foreign(build(architecture, **SIZES, **overrides), architecture)


def _mixer(config: dict[str, Any], state: dict[str, torch.Tensor]) -> Any:
    return hf_arch.from_foreign(config, state).model.layers[0].mixer


@pytest.mark.parametrize("architecture", ["gla", "retnet"])
@torch.no_grad()
def test_names_of_an_unfused_norm_survive(architecture: str) -> None:
    config, state = _source(architecture)
    unfused = {key.replace("g_norm_swish_gate", "g_norm"): tensor for key, tensor in state.items()}
    assert unfused.keys() != state.keys()
    model = hf_arch.from_foreign({**config, "fuse_norm": False}, unfused)
    assert torch.equal(model(IDS).logits, hf_arch.from_foreign(config, state)(IDS).logits)
    again, tensors = hf_arch.to_foreign(model, architecture)
    assert again["fuse_norm"] is False and tensors.keys() == unfused.keys()


@torch.no_grad()
def test_a_hybrid_may_have_attention_alone() -> None:
    config, state = _source("gla", mixer=[{"type": "attention", "num_heads": 2}] * 2, position="rope")
    model = hf_arch.from_foreign(config, state)
    again, tensors = hf_arch.to_foreign(model, "gla")
    assert again["attn"] == config["attn"] and all(torch.equal(tensors[key], state[key]) for key in state)


@pytest.mark.parametrize("model_type", ["transformer", "litgpt", "qwen3"])
@pytest.mark.parametrize(
    "overrides",
    [{"sliding_window": 5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {"norm_eps": 1e-5}],
    ids=str,
)
@torch.no_grad()
def test_where_a_llama_says_an_option_does_not_matter(model_type: str, overrides: dict[str, Any]) -> None:
    """Ours has it of the whole model, and gets it back layer by layer."""
    model = build("llama", **SIZES, **{"norm_eps": 1e-5, "qk_norm": True, **overrides})
    config, state = hf_arch.to_foreign(model, model_type)
    assert torch.equal(hf_arch.from_foreign(config, state)(IDS).logits, model(IDS).logits)


def test_heads_that_no_layer_rotates_may_be_odd() -> None:
    """The four heads of FLA's default belong to no layer of an HGRN, which would be 9 wide; its attention's are not."""
    attention = {"type": "attention", "num_heads": 2}
    sizes = {**SIZES, "hidden_size": 36, "num_attention_heads": 2, "num_key_value_heads": 2}
    config, state = hf_arch.to_foreign(build("hgrn", mixer=["hgrn", attention], position="rope", **sizes), "hgrn")
    del config["num_heads"]
    assert hf_arch.from_foreign(config, state).model.layers[1].mixer.head_dim == 18


@pytest.mark.parametrize(
    ("architecture", "theirs", "ours"),
    [
        ("retnet", "gelu", "gelu"),  # its layer takes transformers' names, of which this is the exact one
        ("retnet", "gelu_new", "gelu_tanh"),
        ("retnet", "tanh", "tanh"),
        ("gla", "gelu", "gelu_tanh"),  # the others take FLA's
        ("gla", "logsigmoid", "logsigmoid"),
    ],
)
@torch.no_grad()
def test_feature_maps_are_those_of_the_layer(architecture: str, theirs: str, ours: str) -> None:
    config, state = _source(architecture)
    model = hf_arch.from_foreign({**config, "feature_map": theirs}, state)
    assert model.model.layers[0].mixer.options.feature_map == ours
    again = hf_arch.from_foreign(*hf_arch.to_foreign(model, architecture))
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@torch.no_grad()
def test_powlu_gates_the_mlp_where_no_output_gate_shares_the_option() -> None:
    config, state = _source("gsa")
    model = hf_arch.from_foreign({**config, "hidden_act": "powlu"}, state)
    ffn, x = model.model.layers[0].ffn, torch.linspace(-3, 5, 2 * 32).view(2, 32)
    gate = ffn.gate_proj(x)
    power = torch.where(gate > 0, 3 / (gate.clamp(min=0).sqrt() + 1), 1)
    expected = gate.sign() * gate.abs() ** power * gate.sigmoid() * ffn.up_proj(x)
    torch.testing.assert_close(ffn(x), ffn.down_proj(expected))
    assert hf_arch.to_foreign(model, "gsa")[0]["hidden_act"] == "powlu"
    with pytest.raises(ConfigError, match=r"hidden_act: 'powlu' is not supported by gla; allowed: 'swish', 'silu'"):
        hf_arch.from_foreign({**_source("gla")[0], "hidden_act": "powlu"}, {})


@pytest.mark.parametrize(("architecture", "expand_k"), [("gsa", 2.0), ("abc", 0.5)])
def test_slots_default_to_the_key_dim_of_a_head(architecture: str, expand_k: float) -> None:
    slots = int(32 * expand_k / 4)
    config, state = _source(architecture, mixer={"type": architecture, "num_slots": slots, "expand_k": expand_k})
    assert _mixer({**config, "num_slots": None}, state).options.num_slots == slots


def test_ranks_of_rwkv7_follow_the_width() -> None:
    """max(32, 32 round(c sqrt(D) r / 32)), with r = head_dim / 64 for all but the gate's, whose r is 1."""
    ranks = {"decay_rank": 32, "gate_rank": 64, "rate_rank": 32, "value_rank": 32}
    sizes = {**SIZES, "hidden_size": 256}
    config, state = hf_arch.to_foreign(build("rwkv7", mixer={"type": "rwkv7", **ranks}, **sizes), "rwkv7")
    names = [f"{name}_low_rank_dim" for name in ("decay", "gate", "a", "v")]
    options = _mixer({**config, **dict.fromkeys(names)}, state).options
    assert {name: getattr(options, name) for name in ranks} == ranks


def test_widths_are_whole_but_for_rounding() -> None:
    sizes = {**SIZES, "hidden_size": 50, "num_attention_heads": 5, "num_key_value_heads": 5}
    config, state = hf_arch.to_foreign(build("gla", mixer={"type": "gla", "expand_v": 2.3}, **sizes), "gla")
    assert int(50 * 2.3) == 114 and _mixer(config, state).v_proj.out_features == 115
    with pytest.raises(ConfigError, match=r"expand_k: 0\.55 times 50 is not a whole width; nearest valid: 0\.56"):
        hf_arch.from_foreign({**config, "expand_k": 0.55}, state)


def test_a_whole_number_is_a_number() -> None:
    config, state = _source("gla")
    assert _mixer({**config, "clamp_min": -1}, state).options.clamp_min == -1


@pytest.mark.parametrize("name", ["gate_logit_normalizer", "gate_low_rank_dim"])
def test_what_their_config_does_not_reach_is_not_written(name: str) -> None:
    model = build("gla", **SIZES, mixer={"type": "gla", name: 8})
    with pytest.raises(ConfigError, match=name):
        hf_arch.to_foreign(model, "gla")


@pytest.mark.parametrize("architecture", ["llama", "mla"])
@torch.no_grad()
def test_in_a_window_of_one_a_token_sees_itself(architecture: str) -> None:
    model = build(architecture, **SIZES, sliding_window=1)
    whole = model(IDS, use_cache=False).logits
    torch.testing.assert_close(whole[:, 9], model(IDS[:, 9:10]).logits[:, 0], rtol=0, atol=1e-5)
    cache = DynamicCache(config=model.config)
    pieces = [model(part, past_key_values=cache).logits for part in IDS.split([5, 1, 4, 3], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("model_type", "heads"), [("gla", 4), ("retnet", 8), ("transformer", 32), ("mla", 16)])
def test_a_config_may_leave_out_the_heads(model_type: str, heads: int) -> None:
    """Another number of them would fit the same tensors."""
    config = {"model_type": model_type, "hidden_size": 128, "num_hidden_layers": 1}
    assert _convert_config(FOREIGN.get(model_type)(), config).num_attention_heads == heads


def test_mamba_is_written_for_both_libraries() -> None:
    config, _ = _source("mamba", mixer={"type": "mamba", "dt_rank": 3, "dt_min": 0.01}, norm_eps=1e-3)
    for theirs, fla in (("time_step_rank", "dt_rank"), ("time_step_min", "dt_min"), ("layer_norm_epsilon", "norm_eps")):
        assert config[theirs] == config[fla]


@pytest.mark.parametrize("option", ["norm_before_gate", "D_has_hdim"])
@torch.no_grad()
def test_what_transformers_mamba2_ignores_is_written_for_fla_alone(option: str) -> None:
    model = build("mamba2", **SIZES, mixer={"type": "mamba2", "head_dim": 8, "state_size": 4, option: True})
    config, state = hf_arch.to_foreign(model, "mamba2")
    assert config[option] and "layer_norm_epsilon" not in config
    assert torch.equal(hf_arch.from_foreign(config, state)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("model_type", "option", "line"),
    [
        (
            "forgetting_transformer",
            {"use_output_gate": "x"},
            "use_output_gate: 'x' is not .* allowed: False, True, None",
        ),
        ("moba", {"moba_topk": 1}, "moba_topk: 1 is not supported by moba; allowed: 2 to 256"),
        ("gla", {"elementwise_affine": None}, "elementwise_affine: None is not supported by gla; allowed: True, False"),
        ("lightnet", {"elementwise_affine": "x"}, "elementwise_affine: 'x' is not .* allowed: True, False"),
        ("abc", {"expand_k": None}, "mixer abc: expand_k: None is not allowed"),
        ("gsa", {"exapnd_k": None}, "mixer gsa: expand_k: None is not allowed"),
    ],
)
def test_a_wrong_value_is_one_line(model_type: str, option: dict[str, Any], line: str) -> None:
    config = {"model_type": model_type, "hidden_size": 64, "num_hidden_layers": 1, "num_heads": 4, **option}
    with pytest.raises(ConfigError, match=line):
        hf_arch.from_foreign(config, {})


@pytest.mark.parametrize("architecture", ["nsa", "moba", "llama"])
def test_a_whole_rope_theta_survives(architecture: str) -> None:
    """FLA's is a float; 500 is the same rotation."""
    rope = {"rope_type": "default", "rope_theta": 500}
    config, _ = hf_arch.to_foreign(
        build(architecture, **SIZES, rope_parameters=rope, norm_eps=1e-5),
        "transformer" if architecture == "llama" else architecture,
    )
    assert config["rope_theta"] == 500
