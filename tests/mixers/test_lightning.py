"""Lightning attention against its formulas in fp64, token by token, and as a model that holds every invariant."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import hf_arch
from hf_arch.checks import check_model
from tests.mixers.layers import assert_layer, mixer_and_input, rms, weights


def test_it_is_its_formula():
    mixer, x = mixer_and_input("mixed", layer=1, mixer=["attention", "lightning", "lightning"], num_hidden_layers=3)
    w, u, heads = weights(mixer), x.double(), mixer.sizes.num_heads
    q, k, v = (F.silu(u @ w[f"{name}_proj.weight"].T).unflatten(-1, (heads, -1)) for name in ("q", "k", "v"))
    number = torch.arange(1, heads + 1, dtype=torch.float64)
    decay = torch.exp(-(2.0 ** (-8 * number / heads)) * (1 - 1 / (2 + 1e-5) + 1e-5))
    state, rows = torch.zeros(2, heads, q.shape[-1], v.shape[-1], dtype=torch.float64), []
    for t in range(x.shape[1]):
        state = decay[:, None, None] * state + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    out = rms(torch.stack(rows, 1).flatten(2), w["o_norm.weight"], 1e-6)
    assert_layer(mixer, x, out * (u @ w["g_proj.weight"].T).sigmoid() @ w["o_proj.weight"].T)


def test_every_invariant():
    stream = {"type": "weighted", "keep": [[1.3, 0.8], [0.9, 1.1]], "add": [[0.7, 1.2]]}
    for changes in ({}, {"stream": stream, "norm_position": "stream"}):
        config = hf_arch.tiny_config("mixed", mixer=["lightning", "attention"], num_hidden_layers=4, **changes)
        assert [result for result in check_model(config) if not result.passed] == []
