"""Every RoPE type of transformers gives Llama's numbers, with and without a cache and past the original length, or is
refused in one line when the config is made."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.layers.rope_parameters import ROPE_TYPES

ORIGINAL, HEAD = 16, 8
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": HEAD,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 3.5]}
TYPES = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "yarn, every key": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.9,
        "truncate": False,
    },
    "longrope": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, **LONG},
    "longrope without a factor": {"rope_type": "longrope", "original_max_position_embeddings": ORIGINAL, **LONG},
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": ORIGINAL,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "proportional": {},
    "proportional, half": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
}


def parameters(kind):
    return {"rope_type": kind, "rope_theta": 1000.0, **TYPES[kind]}


def both(kind, length=64):
    """(transformers' Llama, ours) with the same weights."""
    length = ORIGINAL if kind == "dynamic" else length  # whose original length is the config's
    config = LlamaConfig(**SIZES, max_position_embeddings=length, rope_parameters=parameters(kind))
    theirs = LlamaForCausalLM(config).eval()
    return theirs, hf_arch.from_foreign(theirs.config.to_dict(), theirs.state_dict()).eval()


def test_all_of_transformers_types_are_known():
    assert set(ROPE_TYPES) == {"default", "inclusive", *ROPE_INIT_FUNCTIONS}
    assert {parameters(kind)["rope_type"] for kind in TYPES} | {"inclusive"} == set(ROPE_TYPES)


@torch.no_grad()
@pytest.mark.parametrize("kind", TYPES)
def test_logits_are_llamas(kind):
    theirs, ours = both(kind)
    ids = torch.randint(3, 97, (2, 40))
    for length in (ORIGINAL - 4, 40, ORIGINAL - 4):  # within the original length, past it, and within it again
        expected = theirs(ids[:, :length], use_cache=False).logits
        torch.testing.assert_close(ours(ids[:, :length], use_cache=False).logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", TYPES)
def test_cached_steps_past_the_original_length_are_llamas(kind):
    theirs, ours = both(kind)
    ids = torch.randint(3, 97, (1, 24))
    expected, actual = (model(ids[:, : ORIGINAL - 4], use_cache=True) for model in (theirs, ours))
    for step in range(ORIGINAL - 4, 24):
        token = ids[:, step : step + 1]
        expected = theirs(token, past_key_values=expected.past_key_values, use_cache=True)
        actual = ours(token, past_key_values=actual.past_key_values, use_cache=True)
        torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "mla", "moe", "team"])
@pytest.mark.parametrize("kind", TYPES)
def test_every_rotary_mixer_takes_every_type(architecture, kind):
    """And keeps its frequencies in bf16."""
    try:
        config = hf_arch.tiny_config(architecture, rope_parameters=parameters(kind))
    except ConfigError as error:
        assert "longrope" in kind and "numbers, but one for each pair" in str(error)  # of another head_dim
        pairs = int(str(error).rsplit(" ", 1)[1])
        given = {**parameters(kind), "short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}
        config = hf_arch.tiny_config(architecture, rope_parameters=given)
    model = AutoModelForCausalLM.from_config(config).eval()
    frequencies = [buffer.clone() for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    assert frequencies and torch.isfinite(model(torch.randint(3, 97, (2, 9))).logits).all()
    low = [buffer for name, buffer in model.bfloat16().named_buffers() if name.endswith("inv_freq")]
    assert all(torch.equal(a, b) for a, b in zip(low, frequencies, strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"partial_rotary_factor": 1.5}, r"partial_rotary_factor: 1\.5 is not allowed.*nearest valid: 1$"),
        ({"partial_rotary_factor": 0.0}, r"partial_rotary_factor: 0\.0 is not allowed.*nearest valid: 0\.25"),
        ({"partial_rotary_factor": -0.5}, "partial_rotary_factor: -0.5 is not allowed"),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor: 'half' is not allowed"),
        ({"partial_rotary_factor": 0.4}, r"is 3 features, RoPE rotates pairs; nearest valid: 0\.25"),
        ({"partial_rotary_factor": 0.1}, "is 0 features, RoPE rotates pairs; nearest valid: 0.25"),
        ({"rope_type": "proportional", "partial_rotary_factor": 0.1}, "rotates pairs"),
        ({"rope_type": "yarm"}, "rope_type: 'yarm' is not known; nearest: 'yarn'"),
        ({"rope_type": "linear"}, "factor is missing; type linear needs factor"),
        ({"rope_type": "linear", "factor": 0.5}, "factor 0.5 is not allowed; use a number of at least 1"),
        ({"rope_type": "linear", "factor": "2"}, "factor '2' is not a number"),
        ({"factor": 2.0}, "rope_parameters of type default: unknown key 'factor'"),
        ({"rope_type": "dynamic", "factor": 2.0, "facto": 1}, "unknown key 'facto'; nearest: 'factor'"),
        ({"rope_theta": 0}, "rope_theta 0 is not allowed; use a number above 0"),
        ({"rope_theta": float("nan")}, "rope_theta nan is not a number"),
        (
            {
                "rope_type": "longrope",
                "original_max_position_embeddings": 16,
                "short_factor": [1.0],
                "long_factor": [1],
            },
            "short_factor has 1 numbers, but one for each pair of rotated features is 4",
        ),
        (
            {"rope_type": "longrope", "original_max_position_embeddings": 16, **LONG, "long_factor": [1, 0, 1, 1]},
            "long_factor .* is not allowed; use a list of positive numbers",
        ),
        ({"rope_type": "longrope", "long_factor": [1.0] * 4}, "short_factor is missing"),
        (
            {**TYPES["llama3"], "rope_type": "llama3", "high_freq_factor": 1.0},
            "high_freq_factor 1.0 is not allowed; use a number above low_freq_factor 1.0",
        ),
        ({**TYPES["yarn"], "rope_type": "yarn", "beta_fast": 0.5}, "beta_fast 0.5 is not allowed"),
    ],
)
def test_what_gives_no_rotation_is_refused_in_one_line(given, message):
    with pytest.raises(ConfigError, match=message) as error:
        hf_arch.tiny_config("llama", rope_parameters={"rope_theta": 10000.0, **given})
    assert "\n" not in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0, 1])
def test_a_share_of_the_features_is_rotated(share):
    config = hf_arch.tiny_config("llama", rope_parameters={"rope_theta": 10000.0, "partial_rotary_factor": share})
    model = AutoModelForCausalLM.from_config(config).eval()
    assert model.model.rotary_embs[0].inv_freq.numel() == int(HEAD * share) // 2
    assert torch.isfinite(model(torch.randint(3, 97, (1, 7))).logits).all()
