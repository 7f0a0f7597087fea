"""DeltaNet against its formulas, and its options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import assert_layer, causal_conv, heads, mixer_and_input, rms, unit, weights

FEATURE_MAPS = {"silu": F.silu, "relu": F.relu, "elu": lambda x: F.elu(x) + 1, "identity": lambda x: x}


def delta_net(w: dict[str, Tensor], x: Tensor, key_dim: int, value_dim: int, o: object) -> Tensor:
    """The layer as the paper writes it, one token after another; `o` are the mixer's options."""
    q, k, v = x @ w["q_proj.weight"].T, x @ w["k_proj.weight"].T, x @ w["v_proj.weight"].T
    if o.use_short_conv:
        q, k, v = (causal_conv(part, w[f"{name}_conv.weight"]) for name, part in zip("qkv", (q, k, v), strict=True))
    feature_map = FEATURE_MAPS[o.qk_activation]
    q, k, v = heads(feature_map(q), key_dim), heads(feature_map(k), key_dim), heads(F.silu(v), value_dim)
    q, k = (unit(p) if o.qk_norm == "l2" else p / p.abs().sum(-1, keepdim=True) for p in (q, k))
    beta = torch.sigmoid(x @ w["b_proj.weight"].T) if o.use_beta else torch.ones_like(k[..., 0])
    beta = 2 * beta if o.allow_neg_eigval else beta
    groups = q.shape[2] // k.shape[2]
    k, v, beta = (part.repeat_interleave(groups, 2) for part in (k, v, beta))
    state = x.new_zeros(x.shape[0], q.shape[2], key_dim, value_dim)
    outputs = []
    for t in range(x.shape[1]):
        recalled = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], v[:, t] - recalled)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t] / key_dim**0.5, state))
    out = rms(torch.stack(outputs, 1), w["o_norm.weight"], 1e-6)
    if o.use_output_gate:
        out = out * F.silu(heads(x @ w["g_proj.weight"].T, value_dim))
    return out.flatten(2) @ w["o_proj.weight"].T


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_output_gate": True, "allow_neg_eigval": True, "expand_v": 2.0},
        {"qk_activation": "relu", "qk_norm": "sum", "use_beta": False},
        {"qk_activation": "elu", "qk_norm": "sum", "use_short_conv": False},
        {"qk_activation": "identity", "expand_k": 0.5},
        {"use_short_conv": False, "conv_size": 3},
        {"conv_size": 3},
    ],
    ids=str,
)
def test_layer_equals_its_formulas(options: dict) -> None:
    mixer, x = mixer_and_input("delta_net", mixer={"type": "delta_net", **options})
    sizes = mixer.sizes
    expected = delta_net(weights(mixer), x.double(), sizes.head_k_dim, sizes.head_v_dim, mixer.options)
    assert_layer(mixer, x, expected)


def test_initial_weights_follow_the_configs_rule() -> None:
    config = hf_arch.tiny_config("delta_net", hidden_size=128, num_attention_heads=8)
    mixer = AutoModelForCausalLM.from_config(config).model.layers[0].mixer
    for name in ("q_proj", "v_proj", "b_proj", "o_proj", "q_conv"):
        assert getattr(mixer, name).weight.std().item() == pytest.approx(0.02, rel=0.15), name
    assert mixer.o_norm.weight.eq(1).all()


def test_an_unknown_feature_map_is_an_error() -> None:
    with pytest.raises(ConfigError, match="qk_activation"):
        hf_arch.tiny_config("delta_net", mixer={"type": "delta_net", "qk_activation": "tanh"})
