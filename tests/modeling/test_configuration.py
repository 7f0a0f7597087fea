"""ArchConfig: components in and out, patterns, flat options, and mistakes in one line each."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

import hf_arch
from hf_arch.checks import check_model
from hf_arch.core.errors import ConfigError


def _config(**values):
    return hf_arch.config_from_dict({"architecture": "mixed", "hidden_size": 32, "num_attention_heads": 4, **values})


def test_a_pattern_repeats_over_the_layers():
    config = _config(num_hidden_layers=8, mixer=["gla*3", "attention"])
    assert [mixer.label or "attention" for mixer, _ in config.mixer_specs] == (["GLA"] * 3 + ["attention"]) * 2
    assert config.layer_types == (["hfa_recurrent"] * 3 + ["full_attention"]) * 2


def test_layer_types_and_windows_follow_the_mixers():
    config = _config(num_hidden_layers=3, mixer=["mamba", {"type": "attention", "window": 6}, "attention"])
    assert config.layer_types == ["hfa_recurrent", "sliding_attention", "full_attention"]
    assert config.windows == [None, 6, None]
    assert [layer.sliding_window for layer in config.per_layer_config] == [None, 6, None]


def test_options_given_flat_are_stored_nested():
    config = AutoConfig.for_model("hfa_gla", expand_k=1.0, hidden_size=32, num_attention_heads=4)
    assert config.mixer["expand_k"] == 1.0
    assert not hasattr(config, "expand_k")


def test_a_dict_without_a_type_means_the_architectures_own_mixer():
    config = AutoConfig.for_model("hfa_gla", mixer={"expand_k": 0.25}, hidden_size=32, num_attention_heads=4)
    assert (config.mixer["type"], config.mixer["expand_k"]) == ("gla", 0.25)


def test_a_config_is_not_changed_by_another_one():
    pattern = ["gla", {"type": "attention"}]
    _config(num_hidden_layers=2, mixer=pattern)
    assert pattern == ["gla", {"type": "attention"}]


MISTAKES = [
    ({"architecture": "lama"}, "model.architecture: 'lama' is not known; nearest: 'llama'"),
    ({}, f"model: no `architecture`; all {len(hf_arch.list_architectures())}: hf-arch list"),
    (
        {"architecture": "llama", "num_attention_heads": 12, "hidden_size": 320},
        "model.num_attention_heads: 12 does not divide hidden_size 320; nearest valid: 10 or 16",
    ),
    ({"architecture": "llama", "num_layers": 3}, "model: unknown key 'num_layers'; nearest: 'num_hidden_layers'"),
    ({"architecture": "gla", "expand_q": 3}, "model: unknown key 'expand_q'; nearest: 'expand_"),
    ({"architecture": "llama", "hidden_size": "x"}, "model.hidden_size: 'x' is not"),
    ({"architecture": "llama", "hidden_size": -4}, "model.hidden_size: -4 is not allowed; use an integer >= 1"),
    ({"architecture": "llama", "hidden_size": True}, "model.hidden_size: True is not"),
    ({"architecture": "llama", "mixer": "mambo"}, "model.mixer: 'mambo' is not known; nearest: 'mamba'"),
    ({"architecture": "llama", "mixer": ["gla*0"]}, "model.mixer: 'gla*0' is not a pattern entry"),
    ({"architecture": "llama", "mixer": []}, "model.mixer: an empty pattern"),
    (
        {"architecture": "llama", "mixer": {"type": "gla", "expnd": 1}},
        "model.mixer gla: unknown key 'expnd'; nearest: 'expand_",
    ),
    ({"architecture": "gla", "expand_k": "big"}, "model.mixer gla: expand_k: 'big' is not allowed; expected one of"),
    ({"architecture": "llama", "num_hidden_layers": 2, "mixer": ["gla*3"]}, "model.mixer: the pattern has 3 entries"),
    ({"architecture": "llama", "norm": "rmsnrm"}, "model.norm: 'rmsnrm' is not known; nearest: 'rmsnorm'"),
    (
        {"architecture": "llama", "norm_position": "mid"},
        "model.norm_position: 'mid' is not known; allowed: output, post, pre, sandwich, stream",
    ),
    ({"architecture": "llama", "position": "ropes"}, "model.position: 'ropes' is not known; nearest: 'rope'"),
    ({"architecture": "llama", "hidden_act": "gelo"}, "model.hidden_act: 'gelo' is not known; nearest: 'gelu'"),
    (
        {"architecture": "llama", "attention_dropout": 1.5},
        "model.attention_dropout: 1.5 is not allowed; use a probability",
    ),
    (
        {"architecture": "llama", "head_dim": 33},
        "model.head_dim: 33 is odd, RoPE rotates pairs; nearest valid: 32 or 34",
    ),
    (
        {"architecture": "llama", "num_key_value_heads": 5},
        "model.num_key_value_heads: 5 does not divide num_attention_heads 12",
    ),
    (
        {"architecture": "llama", "tie_word_embeddings": "yes"},
        "model.tie_word_embeddings: 'yes' is not allowed; expected bool",
    ),
    ({"architecture": "llama", "sliding_window": 0}, "model.sliding_window: 0 is not allowed; use an integer >= 1"),
    ({"architecture": "llama", "plugins": ["nowhere.py"]}, "plugin: no file at 'nowhere.py'"),
]


@pytest.mark.parametrize(("section", "message"), MISTAKES, ids=[message[:50] for _, message in MISTAKES])
def test_a_mistake_is_one_line_with_the_field_and_the_way_out(section, message):
    with pytest.raises(ConfigError) as caught:
        hf_arch.config_from_dict(section)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_same_mistakes_are_value_errors_in_python():
    with pytest.raises(ValueError, match="12 does not divide hidden_size 320"):
        AutoConfig.for_model("hfa_llama", num_attention_heads=12, hidden_size=320)


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ({"architecture": "gpt2"}, "12L-12H-768D-Learned-LN-GELU-PreNorm"),
        ({"architecture": "llama"}, "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm"),
        ({"architecture": "gla"}, "24L-4H-1024D-GLA-RMS-SwiGLU-PreNorm"),
        ({"architecture": "mixed"}, "8L-8H-384D-3xGLA+Attn-RoPE-RMS-SwiGLU-PreNorm"),
        (
            {"architecture": "team", "norm_position": "post", "position": "alibi"},
            "6L-8H-384D-ALiBi-RMS-SwiGLU-PostNorm",
        ),
    ],
)
def test_architecture_names(section, name):
    assert hf_arch.describe(hf_arch.config_from_dict(section))[0] == name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_position": ["pre", "past"]}, "norm_position: 'past' is not known; nearest: 'post'"),
        ({"norm_position": []}, r"norm_position: \[\] is not allowed; use one of"),
        ({"norm_position": ["pre"] * 9}, "norm_position: the pattern has 9 entries"),
        ({"norm_position": ["pre", "output"], "stream": "parallel"}, "norm_position: 'output' does not fit stream"),
        (
            {"mixer": {"type": "attention", "qk_norm_over": "all"}, "qk_norm": False},
            "qk_norm_over: 'all' would have no",
        ),
    ],
)
def test_what_does_not_fit_of_norms_is_said(changes, message):
    with pytest.raises(ConfigError, match=message):
        hf_arch.tiny_config("llama", **changes)


def test_a_pattern_of_norms_holds_every_invariant_and_is_described():
    config = hf_arch.tiny_config("llama", norm_position=["output", "pre"], num_hidden_layers=4)
    assert [result for result in check_model(config) if not result.passed] == []
    name, table = hf_arch.describe(config)
    assert "OutputNorm+PreNorm" in name and "output + pre" in dict(table)["norm"]
