"""Every option of the gated linear-attention families survives the way to flash-linear-attention's terms and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import build

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
ATTENTION = {"type": "attention", "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "window": 5, "rope_theta": 500.0}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("linear_attn", {"feature_map": "t2r", "norm_q": True, "expand_k": 0.5, "expand_v": 2.0, "num_kv_heads": 2}),
    ("linear_attn", {"feature_map": "hedgehog", "tie_feature_map": True, "normalize": True, "norm_k": True}),
    ("linear_attn", {"feature_map": "dpfp", "output_norm_affine": False}),
    ("hgrn", {"expand_ratio": 2, "use_short_conv": True, "conv_size": 3}),
    ("hgrn", {"use_lower_bound": False, "output_norm_affine": False}),
    ("hgrn2", {"use_short_conv": True, "conv_size": 3, "expand_ratio": 8}),
    ("hgrn2", {"use_lower_bound": False, "output_norm_affine": False, "expand_ratio": 8}),
    ("gsa", {"num_slots": 5, "feature_map": "t2r", "use_short_conv": True, "gate_logit_normalizer": 4}),
    ("gsa", {"num_slots": 5, "feature_map": "relu", "num_kv_heads": 2, "output_norm_affine": False}),
    ("abc", {"num_slots": 5, "use_short_conv": True, "clamp_min": -1.0, "clamp_max": 2.0}),
    ("abc", {"num_slots": 5, "use_rope": False, "expand_k": 1.0, "output_norm_affine": False}),
    ("rwkv6", {"expand_k": 1.0, "shift_rank": 3, "decay_rank": 5}),
]


def _model(architecture: str, options: dict[str, Any], hybrid: bool, **overrides: Any) -> Any:
    kv_heads = options.get("num_kv_heads", 4)
    own = {"type": architecture, **{key: value for key, value in options.items() if key != "num_kv_heads"}}
    layers = [own, ATTENTION, own] if hybrid else own
    position = {"position": "rope", "attention_bias": False} if hybrid else {}
    return build(architecture, mixer=layers, num_key_value_heads=kv_heads, **SIZES, **position, **overrides)


@pytest.mark.parametrize("hybrid", [False, True], ids=["plain", "hybrid"])
@pytest.mark.parametrize(("architecture", "options"), VARIANTS, ids=str)
@torch.no_grad()
def test_there_and_back(architecture: str, options: dict[str, Any], hybrid: bool) -> None:
    model = _model(architecture, options, hybrid)
    config, state = hf_arch.to_foreign(model, architecture)
    again = hf_arch.from_foreign(config, state)
    ids = torch.randint(1, 97, (2, 17))
    assert torch.equal(again(ids).logits, model(ids).logits)
    _, state_again = hf_arch.to_foreign(again, architecture)
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[key], state_again[key]) for key in state)


@pytest.mark.parametrize(
    "overrides",
    [
        {"norm": "layernorm_nobias", "embedding_norm": False},
        {"ffn": {"type": "channel_mix", "hidden_act": "gelu_tanh", "intermediate_size": 40}, "norm_eps": 1e-4},
    ],
    ids=str,
)
@torch.no_grad()
def test_rwkv6_norms_and_channel_mix(overrides: dict[str, Any]) -> None:
    model = _model("rwkv6", {}, hybrid=False, **overrides)
    config, state = hf_arch.to_foreign(model, "rwkv6")
    ids = torch.randint(1, 97, (2, 17))
    assert torch.equal(hf_arch.from_foreign(config, state)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("architecture", ["hgrn2", "abc", "rwkv6"])
def test_what_the_source_has_no_option_for_is_refused(architecture: str) -> None:
    with pytest.raises(ConfigError, match="num_kv_heads"):
        hf_arch.to_foreign(_model(architecture, {"num_kv_heads": 2}, hybrid=False), architecture)


def test_epsilons_that_the_source_fixes_are_refused() -> None:
    model = _model("hgrn2", {"output_norm_eps": 1e-6}, hybrid=False)
    with pytest.raises(ConfigError, match="output_norm_eps"):
        hf_arch.to_foreign(model, "hgrn2")


def test_another_mixer_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="mixer: no layer is 'gsa'"):
        hf_arch.to_foreign(build("gla"), "gsa")


@pytest.mark.parametrize(
    ("model_type", "option"),
    [
        ("rwkv6", {"hidden_act": "mish"}),
        ("gsa", {"feature_map": "elu"}),
        ("linear_attn", {"feature_map": "taylor"}),
        ("rwkv6", {"attnres_block_size": 2}),
        ("abc", {"num_slotz": 5}),
    ],
)
def test_an_option_that_cannot_be_honoured_is_an_error(model_type: str, option: dict[str, Any]) -> None:
    config = {"model_type": model_type, "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 4, **option}
    with pytest.raises(ConfigError, match=next(iter(option))):
        hf_arch.from_foreign(config, {})


def test_l2warp_is_the_penalty_of_the_largest_logits() -> None:
    model = _model("gla", {}, False, max_logit_penalty=1e-4)
    config, state = hf_arch.to_foreign(model, "gla")
    assert config["use_l2warp"] and hf_arch.from_foreign(config, state).config.max_logit_penalty == 1e-4
    del config["use_l2warp"]
    assert hf_arch.from_foreign(config, state).config.max_logit_penalty == 0.0
    model.config.max_logit_penalty = 2e-4
    with pytest.raises(ConfigError, match=r"max_logit_penalty: 0\.0002 cannot be expressed in a gla checkpoint"):
        hf_arch.to_foreign(model, "gla")
    config, state = hf_arch.to_foreign(build("rwkv7"), "rwkv7")
    assert not config.pop("use_l2warp"), "its default differs here and there, and is said"
    assert hf_arch.from_foreign(config, state).config.max_logit_penalty == 1e-4


@pytest.mark.parametrize("dropped", ["feature_map_q", "feature_map_k"])
def test_a_tied_feature_map_saved_once_is_read(dropped: str) -> None:
    """safetensors keeps a shared tensor under one of its names."""
    model = _model("linear_attn", {"feature_map": "hedgehog", "tie_feature_map": True}, False)
    config, state = hf_arch.to_foreign(model, "linear_attn")
    once = {key: value for key, value in state.items() if dropped not in key}
    assert len(once) < len(state)
    again = hf_arch.from_foreign(config, once)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)
    different = {key: value + 1 if dropped in key else value for key, value in state.items()}
    with pytest.raises(ConfigError, match=r"feature_map_q.* and .*feature_map_k.* differ"):
        hf_arch.from_foreign(config, different)


@pytest.mark.parametrize("dropped", ["lm_head.weight", "model.embeddings.weight"])
def test_tied_embeddings_saved_once_are_read(dropped: str) -> None:
    model = _model("gla", {}, False, tie_word_embeddings=True)
    config, state = hf_arch.to_foreign(model, "gla")
    both = {**state, "lm_head.weight": state["model.embeddings.weight"]}
    once = {key: value for key, value in both.items() if key != dropped}
    again = hf_arch.from_foreign(config, once)
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert again.lm_head.weight is again.model.embed_tokens.weight
