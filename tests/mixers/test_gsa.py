"""Gated slot attention against its formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import assert_layer, causal_conv, heads, mixer_and_input, rms, weights

FEATURE_MAPS = {
    "silu": lambda w, x: F.silu(x),
    "relu": lambda w, x: F.relu(x),
    "t2r": lambda w, x: F.relu(x @ w["feature_map.layer.weight"].T),
}


def gsa(w: dict[str, Tensor], x: Tensor, mixer: object) -> Tensor:
    """The layer as the paper writes it: two memories of M slots, one token after another."""
    o, sizes = mixer.options, mixer.sizes
    q, k, v = (x @ w[f"{name}_proj.weight"].T for name in "qkv")
    if o.use_short_conv:
        q, k, v = (F.silu(causal_conv(p, w[f"{name}_conv.weight"])) for name, p in zip("qkv", (q, k, v), strict=True))
    feature_map = FEATURE_MAPS[o.feature_map]
    q, k = feature_map(w, heads(q, sizes.head_k_dim)), feature_map(w, heads(k, sizes.head_k_dim))
    v = F.silu(heads(v, sizes.head_v_dim))
    forget = torch.sigmoid(heads(x @ w["f_proj.weight"].T, o.num_slots)) ** (1 / o.gate_logit_normalizer)
    groups = sizes.num_heads // sizes.num_kv_heads
    k, v, forget = (part.repeat_interleave(groups, 2) for part in (k, v, forget))
    keys = x.new_zeros(x.shape[0], sizes.num_heads, o.num_slots, sizes.head_k_dim)
    values = x.new_zeros(x.shape[0], sizes.num_heads, o.num_slots, sizes.head_v_dim)
    outputs = []
    for t in range(x.shape[1]):
        keep = forget[:, t].unsqueeze(-1)
        keys = keep * keys + (1 - keep) * k[:, t].unsqueeze(-2)
        values = keep * values + (1 - keep) * v[:, t].unsqueeze(-2)
        share = torch.einsum("bhmk,bhk->bhm", keys, q[:, t]).softmax(-1)
        outputs.append(torch.einsum("bhm,bhmv->bhv", share, values))
    out = F.silu(torch.stack(outputs, 1).flatten(2))
    return rms(out, w.get("o_norm.weight", torch.ones(())), 1e-5) @ w["o_proj.weight"].T


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_slots": 3, "expand_k": 2.0, "expand_v": 0.5, "gate_logit_normalizer": 4},
        {"num_slots": 5, "feature_map": "t2r", "use_short_conv": True},
        {"num_slots": 1, "feature_map": "relu", "output_norm_affine": False},
    ],
    ids=str,
)
def test_layer_equals_its_formulas(options: dict) -> None:
    mixer, x = mixer_and_input("gsa", mixer={"type": "gsa", **options})
    assert_layer(mixer, x, gsa(weights(mixer), x.double(), mixer))


def test_initial_weights_follow_the_configs_rule() -> None:
    config = hf_arch.tiny_config("gsa", hidden_size=128)
    mixer = AutoModelForCausalLM.from_config(config).model.layers[0].mixer
    for module in (mixer.q_proj, mixer.f_proj, mixer.o_proj, mixer.q_conv, mixer.feature_map.layer):
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert mixer.o_norm.weight.eq(1).all()


@pytest.mark.parametrize(("name", "value"), [("num_slots", 0), ("gate_logit_normalizer", 0), ("feature_map", "silo")])
def test_mistakes_name_the_option(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        hf_arch.tiny_config("gsa", mixer={"type": "gsa", name: value})
