"""Based against its formula, and the architecture's alternation with short-window attention."""

from __future__ import annotations

import pytest
import torch

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import assert_layer, heads, mixer_and_input, weights


@pytest.mark.parametrize("feature_dim", [1, 4, 5])
def test_layer_is_attention_with_the_expansion_of_exp(feature_dim: int) -> None:
    mixer, x = mixer_and_input("based", mixer={"type": "based", "feature_dim": feature_dim}, num_key_value_heads=2)
    w = weights(mixer)
    q, k, v = (x.double() @ w[f"{name}_proj.weight"].T for name in "qkv")
    q, k, v = heads(q, feature_dim), heads(k, feature_dim).repeat_interleave(2, 2), heads(v, 8).repeat_interleave(2, 2)
    score = torch.einsum("bthk,bshk->bhts", q, k) / feature_dim**0.5
    weight = (1 + score + score.square() / 2).tril()
    out = torch.einsum("bhts,bshv->bthv", weight / (weight.sum(-1, keepdim=True) + 1e-6), v)
    assert_layer(mixer, x, out.flatten(2) @ w["o_proj.weight"].T)


def test_every_second_layer_attends_to_a_short_window() -> None:
    config = type(hf_arch.tiny_config("based"))(num_hidden_layers=4)
    assert [mixer.label for mixer, _ in config.mixer_specs] == ["Based", "", "Based", ""]
    assert config.windows == [None, 64, None, 64]


def test_feature_dim_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="feature_dim 0 is not allowed"):
        hf_arch.tiny_config("based", mixer={"type": "based", "feature_dim": 0})
