"""Gated DeltaNet against its formulas, its init, and its errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import assert_layer, causal_conv, heads, mixer_and_input, rms, unit, weights


def gated_delta_net(w: dict[str, Tensor], x: Tensor, key_dim: int, value_dim: int, o: object) -> Tensor:
    """The layer as the paper writes it, one token after another; `o` are the mixer's options."""
    q, k, v = x @ w["q_proj.weight"].T, x @ w["k_proj.weight"].T, x @ w["v_proj.weight"].T
    if o.use_short_conv:
        q, k, v = (causal_conv(part, w[f"{name}_conv.weight"]) for name, part in zip("qkv", (q, k, v), strict=True))
    q, k, v = unit(heads(F.silu(q), key_dim)), unit(heads(F.silu(k), key_dim)), heads(F.silu(v), value_dim)
    q, k = (part.repeat_interleave(v.shape[2] // k.shape[2], 2) for part in (q, k))
    beta = torch.sigmoid(x @ w["b_proj.weight"].T) * (2 if o.allow_neg_eigval else 1)
    decay = torch.exp(-w["A_log"].exp() * F.softplus(x @ w["a_proj.weight"].T + w["dt_bias"]))
    state = x.new_zeros(x.shape[0], v.shape[2], key_dim, value_dim)
    outputs = []
    for t in range(x.shape[1]):
        state = decay[:, t, :, None, None] * state
        recalled = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], v[:, t] - recalled)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t] / key_dim**0.5, state))
    out = rms(torch.stack(outputs, 1), w["o_norm.weight"], 1e-6)
    if o.use_output_gate:
        gate = {"silu": F.silu, "sigmoid": torch.sigmoid}[o.gate_activation]
        out = out * gate(heads(x @ w["g_proj.weight"].T, value_dim))
    return out.flatten(2) @ w["o_proj.weight"].T


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_v_heads": 4, "allow_neg_eigval": True, "expand_v": 1.0},
        {"gate_activation": "sigmoid", "expand_v": 1.5},
        {"use_output_gate": False, "use_short_conv": False},
    ],
    ids=str,
)
def test_layer_equals_its_formulas(options: dict) -> None:
    mixer, x = mixer_and_input("gated_delta_net", mixer={"type": "gated_delta_net", **options})
    sizes = mixer.sizes
    expected = gated_delta_net(weights(mixer), x.double(), sizes.head_k_dim, sizes.head_v_dim, mixer.options)
    assert_layer(mixer, x, expected)


def test_initial_decays_follow_the_paper() -> None:
    config = hf_arch.tiny_config(
        "gated_delta_net", num_attention_heads=256, head_dim=2, mixer={"type": "gated_delta_net"}
    )
    mixer = AutoModelForCausalLM.from_config(config).model.layers[0].mixer
    rates, steps = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
    assert rates.min() > 0 and rates.max() <= 16 and rates.mean().item() == pytest.approx(8, rel=0.15)
    assert steps.min() >= 1e-3 * 0.99 and steps.max() <= 1e-1 * 1.01
    assert steps.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.3)  # log-uniform
    assert mixer.q_conv.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_state_bytes_count_the_value_heads() -> None:
    config = hf_arch.tiny_config("gated_delta_net")
    model = AutoModelForCausalLM.from_config(config)
    cache = model(torch.ones(1, 5, dtype=torch.long), use_cache=True).past_key_values
    held = sum(
        state.numel() * state.element_size()
        for layer in cache.layers
        for states in (layer.conv_states, layer.recurrent_states)
        for state in states.values()
        if state is not None
    )
    assert hf_arch.cost(config, 5).state_bytes(5) == held


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_v_heads": 3}, "num_v_heads: 3 .* nearest valid: 4"),
        ({"expand_v": 0.3}, r"expand_v: 0\.3 times .* nearest valid"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hf_arch.tiny_config("gated_delta_net", mixer={"type": "gated_delta_net", **options})
