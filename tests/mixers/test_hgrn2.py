"""HGRN2 against its formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import assert_layer, build, causal_conv, heads, rms, weights


def hgrn2(w: dict[str, Tensor], x: Tensor, bound: Tensor | float, mixer: object) -> Tensor:
    """The layer as the paper writes it, one token after another."""
    sizes = mixer.sizes
    q, f, i = (x @ w[f"{name}_proj.weight"].T for name in "qkv")
    if mixer.options.use_short_conv:
        q, f, i = (causal_conv(part, w[f"{name}_conv.weight"]) for name, part in zip("qkv", (q, f, i), strict=True))
    f = bound + (1 - bound) * torch.sigmoid(f)
    q, f, i = heads(F.silu(q), sizes.head_k_dim), heads(f, sizes.head_k_dim), heads(i, sizes.head_v_dim)
    groups = sizes.num_heads // sizes.num_kv_heads
    f, i = f.repeat_interleave(groups, 2), i.repeat_interleave(groups, 2)
    state = x.new_zeros(x.shape[0], sizes.num_heads, sizes.head_k_dim, sizes.head_v_dim)
    outputs = []
    for t in range(x.shape[1]):
        state = f[:, t].unsqueeze(-1) * state + (1 - f[:, t]).unsqueeze(-1) * i[:, t].unsqueeze(-2)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t] / sizes.head_k_dim**0.5, state))
    return rms(torch.stack(outputs, 1).flatten(2), w["o_norm.weight"], 1e-5) @ w["o_proj.weight"].T


@pytest.mark.parametrize(
    "options",
    [{}, {"use_short_conv": True, "expand_ratio": 4}, {"expand_ratio": 16}, {"use_lower_bound": False}],
    ids=str,
)
@pytest.mark.parametrize("layer", [0, 2])
def test_layer_equals_its_formulas(options: dict, layer: int) -> None:
    model = build("hgrn2", num_hidden_layers=3, mixer={"type": "hgrn2", **options}).model
    mixer, x = model.layers[layer].mixer, torch.randn(2, 11, 32)
    shared, bound = None, 0.0
    if options.get("use_lower_bound", True):
        shared = model.shared[0]()[layer]
        bound = model.shared[0].logits.detach().double().softmax(0)[1 : layer + 1].sum(0)
    assert_layer(mixer, x, hgrn2(weights(mixer), x.double(), bound, mixer), shared=shared)


def test_initial_weights_follow_the_configs_rule() -> None:
    config = hf_arch.tiny_config("hgrn2", hidden_size=128, num_attention_heads=8)
    model = AutoModelForCausalLM.from_config(config).model
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_conv"):
        assert getattr(model.layers[0].mixer, name).weight.std().item() == pytest.approx(0.02, rel=0.15), name
    assert model.layers[0].mixer.o_norm.weight.eq(1).all()
    assert model.shared[0].logits.eq(0).all()


def test_expand_ratio_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="expand_ratio 0 is not allowed"):
        hf_arch.tiny_config("hgrn2", mixer={"type": "hgrn2", "expand_ratio": 0})
