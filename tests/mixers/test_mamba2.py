"""Mamba-2 against its formulas, its init and its sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import assert_layer, causal_conv, heads, mixer_and_input, rms, weights

SIZES = {"type": "mamba2", "head_dim": 16, "state_size": 8}


def mamba2(w: dict[str, Tensor], x: Tensor, o: object) -> Tensor:
    """The layer as the paper writes it, one token after another; `o` are the mixer's options."""
    inner = w["out_proj.weight"].shape[1]
    shared = o.n_groups * o.state_size
    projected = x @ w["in_proj.weight"].T + w.get("in_proj.bias", 0)
    z, hidden, step = projected.split([inner, inner + 2 * shared, inner // o.head_dim], -1)
    hidden = F.silu(causal_conv(hidden, w["conv.weight"], w.get("conv.bias")))
    values, B, C = hidden.split([inner, shared, shared], -1)
    values = heads(values, o.head_dim)
    B, C = (heads(part, o.state_size).repeat_interleave(values.shape[2] // o.n_groups, 2) for part in (B, C))
    dt = F.softplus(step + w["dt_bias"]).clamp(o.dt_limit_min, o.dt_limit_max)
    decay = torch.exp(-dt * w["A_log"].exp())
    skip = w["D"].view(values.shape[2], -1)
    state = x.new_zeros(x.shape[0], values.shape[2], o.head_dim, o.state_size)
    outputs = []
    for t in range(x.shape[1]):
        inflow = torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], values[:, t], B[:, t])
        state = decay[:, t, :, None, None] * state + inflow
        outputs.append(torch.einsum("bhpn,bhn->bhp", state, C[:, t]) + skip * values[:, t])
    y = torch.stack(outputs, 1).flatten(2)
    if not o.use_norm:
        y = y * F.silu(z)
    else:
        weight = w["norm.weight"].view(o.n_groups, -1)
        y, z = y.unflatten(-1, (o.n_groups, -1)), z.unflatten(-1, (o.n_groups, -1))
        y = rms(y, weight, 1e-5) * F.silu(z) if o.norm_before_gate else rms(y * F.silu(z), weight, 1e-5)
        y = y.flatten(2)
    return y @ w["out_proj.weight"].T + w.get("out_proj.bias", 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_groups": 2, "proj_bias": True, "D_has_hdim": True, "conv_size": 3},
        {"n_groups": 4, "norm_before_gate": True, "conv_bias": False},
        {"use_norm": False, "dt_limit_min": 0.3, "dt_limit_max": 0.7},
    ],
    ids=str,
)
def test_layer_equals_its_formulas(options: dict) -> None:
    mixer, x = mixer_and_input("mamba2", mixer={**SIZES, **options})
    assert_layer(mixer, x, mamba2(weights(mixer), x.double(), mixer.options))


def test_initial_weights_follow_the_paper() -> None:
    options = {"type": "mamba2", "head_dim": 1, "state_size": 4, "expand": 4}
    config = hf_arch.tiny_config("mamba2", hidden_size=64, num_hidden_layers=3, mixer=options)
    mixer = AutoModelForCausalLM.from_config(config).model.layers[0].mixer
    rates, steps = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
    assert rates.min() >= 1 and rates.max() <= 16 and rates.mean().item() == pytest.approx(8.5, rel=0.15)
    assert steps.min() >= 0.99e-3 and steps.max() <= 1.01e-1
    assert steps.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.3)  # log-uniform
    assert mixer.D.eq(1).all() and mixer.norm.weight.eq(1).all() and mixer.conv.bias.eq(0).all()
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert mixer.conv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    bound = 1 / math.sqrt(256 * 3)  # torch's kaiming_uniform(a=sqrt 5) over 256 inputs, over sqrt(layers)
    assert mixer.out_proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_out_proj_may_follow_the_configs_rule_and_the_conv_a_range() -> None:
    config = hf_arch.tiny_config("mamba2", mixer={**SIZES, "rescale_out_proj": False, "conv_init": 0.5})
    mixer = AutoModelForCausalLM.from_config(config).model.layers[0].mixer
    assert mixer.out_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert 0.45 < mixer.conv.weight.abs().max() <= 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [({"head_dim": 24}, "head_dim: 24 does not divide"), ({"n_groups": 3}, "n_groups: 3 does not divide")],
)
def test_sizes_that_do_not_fit_are_errors(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hf_arch.tiny_config("mamba2", mixer={**SIZES, **options})
