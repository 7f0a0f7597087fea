"""Linear attention and its feature maps against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.layers.feature_maps import FEATURE_MAPS
from tests.mixers.layers import assert_layer, heads, mixer_and_input, rms, weights


def feature_map(kind: str, w: dict[str, Tensor], x: Tensor) -> Tensor:
    """phi(x) by the papers' formulas; `w` holds the map's own parameters."""
    if kind == "elementwise_product":
        return (x @ w["layer1.weight"].T + w["layer1.bias"]) * (x @ w["layer2.weight"].T + w["layer2.bias"])
    if kind == "hedgehog":
        y = x @ w["layer.weight"].T + w["layer.bias"]
        exponentials = torch.cat([torch.exp(2 * y), torch.exp(-2 * y)], -1)
        return exponentials / exponentials.sum(-1, keepdim=True)
    if kind == "t2r":
        return F.relu(x @ w["layer.weight"].T)
    if kind == "dpfp":
        r = torch.cat([F.relu(x), F.relu(-x)], -1)
        size = r.shape[-1]
        shifted = [r[..., [(index - shift) % size for index in range(size)]] for shift in (1, 2, 3, 4)]
        return torch.cat([r * other for other in shifted], -1)
    return {"elu": lambda y: F.elu(y) + 1, "relu": F.relu, "silu": F.silu, "identity": lambda y: y}[kind](x)


def linear_attention_layer(w: dict[str, Tensor], x: Tensor, mixer: object) -> Tensor:
    """The layer as a sum over all earlier tokens."""
    o, sizes = mixer.options, mixer.sizes
    q, k, v = (x @ w[f"{name}_proj.weight"].T for name in "qkv")

    def own(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}

    q = feature_map(o.feature_map, own("q_map."), heads(q, sizes.head_k_dim))
    k = feature_map(o.feature_map, own("q_map." if o.tie_feature_map else "k_map."), heads(k, sizes.head_k_dim))
    q = q / (q.sum(-1, keepdim=True) + 1e-4) if o.norm_q else q
    k = k / (k.sum(-1, keepdim=True) + 1e-4) if o.norm_k else k
    groups = sizes.num_heads // sizes.num_kv_heads
    k, v = k.repeat_interleave(groups, 2), heads(v, sizes.head_v_dim).repeat_interleave(groups, 2)
    scores = torch.einsum("bthk,bshk->bhts", q * q.shape[-1] ** -0.5, k).tril()
    out = torch.einsum("bhts,bshv->bthv", scores, v)
    if o.normalize:
        out = out / (scores.sum(-1).mT.unsqueeze(-1) + 1e-10)
    return rms(out, w["o_norm.weight"], 1e-6).flatten(2) @ w["o_proj.weight"].T


MAPS = ["elementwise_product", "hedgehog", "t2r", "dpfp", "elu", "relu", "silu", "identity"]


@pytest.mark.parametrize("kind", MAPS)
def test_layer_equals_its_formulas(kind: str) -> None:
    mixer, x = mixer_and_input("linear_attn", mixer={"type": "linear_attn", "feature_map": kind, "expand_v": 2.0})
    assert_layer(mixer, x, linear_attention_layer(weights(mixer), x.double(), mixer))


@pytest.mark.parametrize("kind", ["hedgehog", "elu", "dpfp"])
@pytest.mark.parametrize("tied", [False, True])
def test_normalised_and_tied(kind: str, tied: bool) -> None:
    options = {"feature_map": kind, "tie_feature_map": tied, "norm_q": True, "norm_k": True, "normalize": True}
    mixer, x = mixer_and_input("linear_attn", mixer={"type": "linear_attn", **options}, num_key_value_heads=2)
    assert_layer(mixer, x, linear_attention_layer(weights(mixer), x.double(), mixer))


def test_taylor_features_multiply_to_the_expansion_of_exp() -> None:
    taylor = FEATURE_MAPS.get("taylor")(6)
    q, k = torch.randn(5, 6, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    score = q @ k.T / 6**0.5
    torch.testing.assert_close(taylor(q) @ taylor(k).T, 1 + score + score.square() / 2)
    assert taylor(q).shape[-1] == taylor.feature_dim == 1 + 6 + 21


def test_hedgehog_starts_as_the_identity() -> None:
    config = hf_arch.tiny_config("linear_attn", mixer={"type": "linear_attn", "feature_map": "hedgehog"})
    mixer = AutoModelForCausalLM.from_config(config).model.layers[1].mixer
    for feature in (mixer.q_map, mixer.k_map):
        assert torch.equal(feature.layer.weight, torch.eye(8))
        assert feature.layer.bias.eq(0).all()


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("tied", [False, True])
def test_cost_counts_a_map_for_every_head(kind: str, tied: bool) -> None:
    options = {"feature_map": kind, "tie_feature_map": tied}
    mixer, _ = mixer_and_input("linear_attn", mixer={"type": "linear_attn", **options}, num_key_value_heads=2)
    linears = sum(m.weight.numel() for m in mixer.modules() if isinstance(m, nn.Linear))
    one_map = sum(m.weight.numel() for m in mixer.q_map.modules() if isinstance(m, nn.Linear))
    projections = linears - one_map * (1 if tied else 2)
    state = 4 * 4 * mixer.q_map.feature_dim * 8  # 4 heads of 8 values, written and read
    # 4 heads of queries and 2 of keys pass a map.
    assert 2 * linears + mixer.cost(10).mixing_flops / 10 == 2 * projections + 2 * one_map * (4 + 2) + state


def test_an_unknown_feature_map_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="feature_map: 'hedgehg' is not known; nearest: 'hedgehog'"):
        hf_arch.tiny_config("linear_attn", mixer={"type": "linear_attn", "feature_map": "hedgehg"})
