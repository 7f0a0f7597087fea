"""The gated delta rules that followed Gated DeltaNet: each layer against its formulas, its init, cost and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import assert_layer, causal_conv, heads, mixer_and_input, rms, unit, weights

FAMILY = ("kda", "gated_delta_product", "comba", "gdn2", "precond_gated_delta_net", "precond_kda")


class Layer:
    """A mixer's parameters in fp64 and what all the formulas use of them."""

    def __init__(self, mixer: Any, x: Tensor):
        self.w, self.o, self.x, self.sizes = weights(mixer), mixer.options, x.double(), mixer.sizes

    def linear(self, name: str) -> Tensor:
        return self.x @ self.w[f"{name}.weight"].T

    def low_rank(self, name: str) -> Tensor:
        low = self.linear(f"{name}.0") @ self.w[f"{name}.1.weight"].T
        return low + self.w.get(f"{name}.1.bias", 0)

    def qkv(self, name: str) -> Tensor:
        out = self.linear(f"{name}_proj")
        return F.silu(causal_conv(out, self.w[f"{name}_conv.weight"]) if self.o.use_short_conv else out)

    def grouped(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.sizes.num_heads // x.shape[2], 2)

    def key(self, name: str) -> Tensor:
        return self.grouped(unit(heads(self.qkv(name), self.sizes.head_k_dim)))

    def strength(self, name: str = "b_proj") -> Tensor:
        return self.linear(name).sigmoid() * (2 if self.o.allow_neg_eigval else 1)

    def log_decay(self, logits: Tensor, suffix: str = "") -> Tensor:
        """[B, T, H, 1] or, for H K logits, [B, T, H, K]."""
        rate = self.w[f"A_log{suffix}"].exp()
        return -rate[:, None] * F.softplus(logits + self.w[f"dt_bias{suffix}"]).unflatten(-1, (len(rate), -1))

    def read_out(self, out: Tensor) -> Tensor:
        out = rms(out, self.w["o_norm.weight"], 1e-6)
        if self.o.use_output_gate:
            gate = self.linear("g_proj") if "g_proj.weight" in self.w else self.low_rank("g_proj")
            out = out * {"silu": F.silu, "sigmoid": torch.sigmoid}[self.o.gate_activation](gate).view_as(out)
        return out.flatten(2) @ self.w["o_proj.weight"].T


def recall(state: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bhkv,bhk->bhv", state, k)


def erase_and_write(
    q: Tensor, write: Tensor, v: Tensor, g: Tensor, erase: Tensor, *, decay_first: bool = True
) -> Tensor:
    """One token after another, from an empty state."""
    state = q.new_zeros(*q.shape[::2], q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(q.shape[1]):
        decayed = g[:, t].exp().unsqueeze(-1) * state
        correction = v[:, t] - recall(decayed if decay_first else state, erase[:, t])
        state = decayed + torch.einsum("bhk,bhv->bhkv", write[:, t], correction)
        outputs.append(recall(state, q[:, t]) / q.shape[-1] ** 0.5)
    return torch.stack(outputs, 1)


def kda_decay(layer: Layer) -> Tensor:
    if layer.o.lower_bound is None:
        return layer.log_decay(layer.low_rank("f_proj"))
    logits = heads(layer.low_rank("f_proj") + layer.w["dt_bias"], layer.sizes.head_k_dim)
    return layer.o.lower_bound * torch.sigmoid(layer.w["A_log"].exp()[:, None] * logits)


def kda(layer: Layer) -> Tensor:
    k, beta = layer.key("k"), layer.strength().unsqueeze(-1)
    v = heads(layer.qkv("v"), layer.sizes.head_v_dim)
    return layer.read_out(erase_and_write(layer.key("q"), beta * k, v, kda_decay(layer), k))


def gated_delta_product(layer: Layer) -> Tensor:
    sizes, n = layer.sizes, layer.o.num_householder
    q = layer.key("q")
    k, v, beta = (x.chunk(n, -1) for x in (layer.qkv("k"), layer.qkv("v"), layer.strength()))
    k = [layer.grouped(unit(heads(x, sizes.head_k_dim))) for x in k]
    v = [heads(x, sizes.head_v_dim) for x in v]
    state, outputs = q.new_zeros(*q.shape[::2], sizes.head_k_dim, sizes.head_v_dim), []
    for t in range(q.shape[1]):
        if layer.o.use_forget_gate:
            state = layer.log_decay(layer.linear("a_proj"))[:, t].exp().unsqueeze(-1) * state
        for j in range(n):
            correction = beta[j][:, t].unsqueeze(-1) * (v[j][:, t] - recall(state, k[j][:, t]))
            state = state + torch.einsum("bhk,bhv->bhkv", k[j][:, t], correction)
        outputs.append(recall(state, q[:, t]) / sizes.head_k_dim**0.5)
    return layer.read_out(torch.stack(outputs, 1))


def comba(layer: Layer, *, decay_first: bool = False) -> Tensor:
    q, k = (heads(layer.qkv(name), layer.sizes.head_k_dim) for name in "qk")
    p = k * layer.w["decay"].sigmoid()[:, None]
    q, k, p = (layer.grouped(unit(x)) for x in (q - p * layer.w["D"][:, None], k, p))
    v, beta = heads(layer.qkv("v"), layer.sizes.head_v_dim), layer.strength().unsqueeze(-1)
    g = layer.log_decay(layer.linear("a_proj"))
    return layer.read_out(erase_and_write(q, beta * k, v, g, p, decay_first=decay_first))


def gdn2(layer: Layer) -> Tensor:
    k, v = layer.key("k"), heads(layer.qkv("v"), layer.sizes.head_v_dim)
    erase = layer.grouped(heads(layer.strength(), layer.sizes.head_k_dim))
    write = heads(layer.linear("w_proj").sigmoid(), layer.sizes.head_v_dim)
    g = layer.grouped(layer.log_decay(layer.low_rank("f_proj")))
    return layer.read_out(erase_and_write(layer.key("q"), k, write * v, g, erase * k))


def preconditioned(layer: Layer, k: Tensor, decay_name: str) -> Tensor:
    g, gate = layer.log_decay(layer.linear(decay_name), "_atk"), layer.linear("b_atk_proj").sigmoid()
    average, keys = torch.zeros_like(k[:, 0]), []
    for t in range(k.shape[1]):
        average = g[:, t].exp() * average + gate[:, t].unsqueeze(-1) * k[:, t] ** 2
        r = (average + layer.o.squash_eps).log() - layer.w["log_atk_scale"][:, None]
        keys.append(k[:, t] * layer.o.squash_x ** (-r / (1 + r.abs())))
    return torch.stack(keys, 1)


def precond_gated_delta_net(layer: Layer) -> Tensor:
    k = unit(heads(layer.qkv("k"), layer.sizes.head_k_dim))
    write = layer.grouped(preconditioned(layer, k, "a_atk_proj"))
    v, beta = heads(layer.qkv("v"), layer.sizes.head_v_dim), layer.strength().unsqueeze(-1)
    g = layer.log_decay(layer.linear("a_proj"))
    return layer.read_out(erase_and_write(layer.key("q"), beta * write, v, g, layer.grouped(k)))


def precond_kda(layer: Layer) -> Tensor:
    k, beta = layer.key("k"), layer.grouped(layer.strength().unsqueeze(-1))
    v = heads(layer.qkv("v"), layer.sizes.head_v_dim)
    write = beta * preconditioned(layer, k, "a_proj")
    return layer.read_out(erase_and_write(layer.key("q"), write, v, kda_decay(layer), k))


FORMULAS = {
    function.__name__: function
    for function in (kda, gated_delta_product, comba, gdn2, precond_gated_delta_net, precond_kda)
}
OWN: dict[str, list[dict[str, Any]]] = {
    "kda": [{"lower_bound": -1}, {"lower_bound": -3.0, "head_dim": 1, "expand_v": 4}],
    "gated_delta_product": [{"num_householder": 1}, {"num_householder": 3, "use_forget_gate": False, "num_v_heads": 4}],
    "comba": [],
    "gdn2": [{"head_dim": 1, "expand_v": 3}],
    "precond_gated_delta_net": [{"squash_x": 2, "squash_eps": 1e-2, "num_v_heads": 4}],
    "precond_kda": [{"lower_bound": -2.0, "num_v_heads": 2}, {"squash_x": 3.0, "log_atk_scale_init": 1}],
}
SHARED = [
    {},
    {"num_v_heads": 4, "allow_neg_eigval": True, "expand_v": 1.5},
    {"use_short_conv": False, "gate_activation": "silu", "expand_v": 0.5},
    {"use_output_gate": False, "conv_size": 3, "head_dim": 4, "num_heads": 3},
]


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in FAMILY for options in SHARED + OWN[name]], ids=str
)
def test_layer_equals_its_formulas(name: str, options: dict[str, Any]) -> None:
    mixer, x = mixer_and_input(name, mixer={"type": name, **options})
    assert_layer(mixer, x, FORMULAS[name](Layer(mixer, x)))


def test_comba_erases_from_the_state_before_its_decay() -> None:
    """flash-linear-attention's naive form decays first, its kernels and the paper do not."""
    mixer, x = mixer_and_input("comba")
    layer = Layer(mixer, x)
    expected, other = comba(layer), comba(layer, decay_first=True)
    assert_layer(mixer, x, expected)
    assert (other - expected).abs().max() > 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "lowest"), [("kda", 1), ("gated_delta_product", 0), ("comba", 0), ("gdn2", 1), ("precond_kda", 1)]
)
def test_initial_decays(name: str, lowest: float) -> None:
    config = hf_arch.tiny_config(name, num_attention_heads=128, head_dim=2, hidden_size=64, mixer=name)
    mixer = AutoModelForCausalLM.from_config(config).model.layers[0].mixer
    rates, steps = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
    assert rates.min() >= lowest * 0.999 and rates.min() < 3 and rates.max() <= 16.001 and rates.max() > 13
    assert steps.min() >= 1e-3 * 0.99 and steps.max() <= 1e-1 * 1.01


@pytest.mark.parametrize("name", ["kda", "precond_kda"])
def test_a_bounded_gate_starts_unsaturated(name: str) -> None:
    config = hf_arch.tiny_config(name, mixer={"type": name, "lower_bound": -5.0})
    mixer = AutoModelForCausalLM.from_config(config).model.layers[0].mixer
    assert not mixer.A_log.any() and mixer.dt_bias.all()


def test_initial_values_of_comba_and_of_the_preconditioner() -> None:
    mixer = AutoModelForCausalLM.from_config(hf_arch.tiny_config("comba")).model.layers[0].mixer
    assert (mixer.D == 1).all() and (mixer.decay == 1).all()
    options = {"type": "precond_gated_delta_net", "A_min": 15.0, "log_atk_scale_init": 0.5}
    config = hf_arch.tiny_config("precond_gated_delta_net", mixer=options)
    mixer = AutoModelForCausalLM.from_config(config).model.layers[0].mixer
    assert (mixer.log_atk_scale == 0.5).all()
    assert mixer.A_log.exp().min() > 14.9 and mixer.A_log_atk.exp().min() > 14.9


@pytest.mark.parametrize("name", FAMILY)
def test_flops_are_those_of_the_state_and_the_convolutions(name: str) -> None:
    """One product a token for each number of the state in recalling, writing and reading."""
    mixer, _ = mixer_and_input(name)
    sizes, steps = mixer.sizes, getattr(mixer.options, "num_householder", 1)
    state = sizes.num_heads * sizes.head_k_dim * sizes.head_v_dim
    channels = sizes.key_dim + steps * (sizes.key_dim + sizes.value_dim)
    expected = 2 * (2 * steps + 1) * state + 2 * mixer.options.conv_size * channels
    assert mixer.cost(7).mixing_flops == 7 * expected and mixer.cost(7).decode_flops == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("comba", {"num_v_heads": 3}, "num_v_heads: 3 .* nearest valid: 4"),
        ("gdn2", {"expand_v": 0.3}, r"expand_v: 0\.3 times .* nearest valid"),
        ("kda", {"lower_bound": 0.0}, r"lower_bound: 0\.0 is not allowed; use a number < 0"),
        ("precond_kda", {"lower_bound": 2}, "lower_bound: 2 is not allowed; use a number < 0"),
        ("gated_delta_product", {"num_householder": 0}, "num_householder: 0 is not allowed; use an integer >= 1"),
        ("precond_kda", {"squash_x": 0}, "squash_x: 0 is not allowed; use a number > 0"),
        ("precond_gated_delta_net", {"squash_eps": 0.0}, r"squash_eps: 0\.0 is not allowed"),
        ("precond_gated_delta_net", {"A_min": 16}, "A_min: 16 is not allowed"),
    ],
)
def test_mistakes_are_errors(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hf_arch.tiny_config(name, mixer={"type": name, **options})
