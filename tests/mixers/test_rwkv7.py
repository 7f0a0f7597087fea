"""RWKV7 against its formulas, with one layer and with many, and its init."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.layers.mixers.rwkv7 import FIRST_VALUE, STREAMS, GeneralizedDeltaTimeMix
from tests.mixers.layers import assert_layer, heads, mixer_and_input, unit, weights

MIXER = {"type": "rwkv7", "decay_rank": 8, "rate_rank": 6, "value_rank": 4, "gate_rank": 12}


def rwkv7(w: dict[str, Tensor], x: Tensor, size: int, first_value: Tensor | None) -> tuple[Tensor, Tensor]:
    """(output, values of the first layer) as the paper writes them, one token after another; heads of width `size`."""
    delta = F.pad(x, (0, 0, 1, -1)) - x
    shifted = dict(zip(STREAMS, (x + delta * amount for amount in w["shift_mix"]), strict=True))

    def low_rank(name: str, stream: str, activation) -> Tensor:
        inner = activation(shifted[stream] @ w[f"{name}.0.weight"].T)
        return inner @ w[f"{name}.2.weight"].T + w.get(f"{name}.2.bias", 0)

    r, k, v = (shifted[s] @ w[f"{name}_proj.weight"].T for s, name in zip("rkv", "qkv", strict=True))
    decay = torch.exp(-math.exp(-0.5) * torch.sigmoid(low_rank("decay", "w", torch.tanh)))
    rate = torch.sigmoid(low_rank("rate", "a", lambda inner: inner))
    gate = low_rank("gate", "g", torch.sigmoid)
    if first_value is None:
        first_value = v
    else:
        v = v + (first_value - v) * torch.sigmoid(low_rank("value_mix", "v", lambda inner: inner))
    removal = unit(heads(k * w["removal_scale"], size))
    k = k * (1 + (rate - 1) * w["rate_scale"])
    r, k, v, decay, rate = (heads(part, size) for part in (r, k, v, decay, rate))
    state = x.new_zeros(x.shape[0], r.shape[2], size, size)
    outputs = []
    for t in range(x.shape[1]):
        recalled = torch.einsum("bhk,bhkv->bhv", removal[:, t], state)
        removed = torch.einsum("bhk,bhv->bhkv", removal[:, t] * rate[:, t], recalled)
        state = decay[:, t, :, :, None] * state - removed + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", r[:, t], state))
    out = torch.stack(outputs, 1)
    mean, variance = out.mean(-1, keepdim=True), out.var(-1, keepdim=True, unbiased=False)
    out = ((out - mean) / torch.sqrt(variance + size * 1e-5)).flatten(2) * w["o_norm.weight"] + w["o_norm.bias"]
    out = out + ((r * k * w["bonus"]).sum(-1, keepdim=True) * v).flatten(2)
    return (out * gate) @ w["o_proj.weight"].T, first_value


@pytest.mark.parametrize("num_heads", [2, 4])
def test_first_layer_equals_its_formulas_and_hands_its_values_on(num_heads: int) -> None:
    mixer, x = mixer_and_input("rwkv7", mixer=MIXER, num_attention_heads=num_heads)
    expected, first_value = rwkv7(weights(mixer), x.double(), 32 // num_heads, None)
    assert_layer(mixer, x, expected)
    with torch.no_grad():
        published = mixer(x).published[FIRST_VALUE].double()
        torch.testing.assert_close(published, first_value, rtol=0, atol=1e-5)


def test_later_layers_equal_their_formulas() -> None:
    mixer, x = mixer_and_input("rwkv7", mixer=MIXER, layer=1)
    first_value = torch.randn(x.shape)
    expected, _ = rwkv7(weights(mixer), x.double(), 8, first_value.double())
    assert_layer(mixer, x, expected, values={FIRST_VALUE: first_value})


def test_values_come_from_the_first_layer_of_this_kind() -> None:
    """With another mixer below, the first layer that is RWKV7 has no values to mix in and hands on its own."""
    pattern = [{"type": "attention"}, MIXER, MIXER]
    config = hf_arch.tiny_config("rwkv7", mixer=pattern, num_hidden_layers=3, position="rope")
    model = AutoModelForCausalLM.from_config(config)
    mixers = [layer.mixer for layer in model.model.layers]
    assert [mixer.value_mix is None for mixer in mixers[1:]] == [True, False]
    ids = torch.arange(10)[None] + 5
    model(ids, labels=ids).loss.backward()
    assert model.model.layers[1].mixer.v_proj.weight.grad.isfinite().all()


def test_one_layer_has_finite_weights() -> None:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("rwkv7", num_hidden_layers=1))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_initial_weights_follow_the_paper() -> None:
    config = hf_arch.tiny_config("rwkv7", hidden_size=64, num_attention_heads=4, num_hidden_layers=4)
    model = AutoModelForCausalLM.from_config(config)
    mixer, ffn = model.model.layers[1].mixer, model.model.layers[1].ffn
    last, depth, width, size = 63, 4, 64, 16
    for stream, power in zip(STREAMS, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
        amount = mixer.shift_mix[STREAMS.index(stream)]
        assert amount[0].item() == 1.0
        assert amount[last].item() == pytest.approx(1 - (last / width) ** (power * (1 - 1 / depth)), abs=1e-6)
    assert mixer.removal_scale[last].item() == pytest.approx(0.71 - 0.05)
    assert mixer.rate_scale.eq(1.02).all() and mixer.bonus.eq(-0.04).all()
    middle = 6 * (31 / last) ** (1 + (1 / 3) ** 0.3) - 6
    zigzag = (31 % size - 7.5) / 7.5
    assert mixer.decay[2].bias[31].item() == pytest.approx(middle + 0.5 + 2.5 * zigzag * abs(zigzag), abs=1e-5)
    assert mixer.rate[2].bias[last].item() == pytest.approx(-0.19 + 0.3 + 0.2, abs=1e-5)
    assert mixer.value_mix[2].bias[0].item() == pytest.approx(0.73 + 0.2, abs=1e-5)
    assert mixer.o_norm.weight.unique().item() == pytest.approx((2 / 4) ** 0.7)
    assert mixer.o_proj.weight.eq(0).all() and ffn.down_proj.weight.eq(0).all() and mixer.decay[0].weight.eq(0).all()
    for weight, gain in ((mixer.q_proj.weight, 1.0), (mixer.k_proj.weight, 0.1), (mixer.v_proj.weight, 1.0)):
        torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(width), rtol=0, atol=1e-5)
    assert ffn.key_mix[last].item() == pytest.approx(1 - (last / width) ** ((1 - 1 / depth) ** 4), abs=1e-6)
    assert model.model.embed_tokens.weight.abs().max() <= 1e-4
    head = model.lm_head.weight
    torch.testing.assert_close(head.T @ head, 0.25 * 97 / 64 * torch.eye(width), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "ranks"),
    [(768, (64, 64, 32, 128)), (2048, (96, 96, 64, 256)), (2560, (96, 96, 64, 320)), (4096, (128, 128, 96, 480))],
)
def test_default_ranks_follow_the_width(width: int, ranks: tuple[int, ...]) -> None:
    """By hand from 1.8, 1.8, 1.3 sqrt(D) and 0.6 D^0.8, to the next multiple of 32."""
    config = hf_arch.tiny_config("rwkv7")
    config.hidden_size = width
    found = GeneralizedDeltaTimeMix.ranks(config, GeneralizedDeltaTimeMix.Options())
    assert tuple(found.values()) == ranks
