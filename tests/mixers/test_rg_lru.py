"""RG-LRU against its formulas in fp64, token by token, and as a model that holds every invariant."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.checks import check_model
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import assert_layer, causal_conv, mixer_and_input, weights


def test_it_is_its_formula():
    mixer, x = mixer_and_input("griffin")
    w, u = weights(mixer), x.double()
    blocks = w["input_gate.weight"].shape[0]
    inner = causal_conv(u @ w["x_proj.weight"].T + w["x_proj.bias"], w["conv.weight"], w["conv.bias"])

    def gate(name):
        parts = inner.unflatten(-1, (blocks, -1))
        rows = [parts[:, :, block] @ w[f"{name}.weight"][block] + w[f"{name}.bias"][block] for block in range(blocks)]
        return torch.cat(rows, -1).sigmoid()

    a = torch.exp(-8 * F.softplus(w["decay"]) * gate("recurrence_gate"))
    gated, h, rows = gate("input_gate") * inner, torch.zeros_like(inner[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + (1 if t == 0 else (1 - a[:, t] ** 2).sqrt()) * gated[:, t]
        rows.append(h)
    y = F.gelu(u @ w["y_proj.weight"].T + w["y_proj.bias"], approximate="tanh")
    assert_layer(mixer, x, (torch.stack(rows, 1) * y) @ w["o_proj.weight"].T + w["o_proj.bias"])


@pytest.mark.parametrize("options", [{}, {"width": 48, "conv_size": 2, "gate_activation": "silu"}], ids=str)
def test_every_invariant(options):
    config = hf_arch.tiny_config("griffin", mixer=[{"type": "rg_lru", **options}, "attention"])
    assert [result for result in check_model(config) if not result.passed] == []


def test_initial_decays_are_in_their_range():
    fresh = AutoModelForCausalLM.from_config(hf_arch.tiny_config("griffin", hidden_size=256))
    a = torch.exp(-F.softplus(fresh.model.layers[0].mixer.decay))
    assert 0.9 <= a.min() < 0.93 and 0.98 < a.max() <= 0.9991


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30}, "num_heads: .* does not divide width 30"),
        ({"conv_size": 0}, "conv_size 0 is not allowed"),
        ({"decay_min": 1.0}, "use 0 < decay_min < decay_max < 1"),
        ({"gate_activation": "gelo"}, "gate_activation: 'gelo'"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(ConfigError, match=message):
        hf_arch.tiny_config("griffin", mixer=[{"type": "rg_lru", **options}, "attention"])
