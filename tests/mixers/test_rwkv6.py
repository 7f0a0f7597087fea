"""RWKV6's time mix and channel mix against their formulas, and the published initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import assert_layer, build, heads, mixer_and_input, weights


def time_mix(w: dict[str, Tensor], x: Tensor, mixer: object) -> Tensor:
    """The layer as the paper writes it, one token after another."""
    sizes = mixer.sizes
    delta = F.pad(x, (0, 0, 1, 0))[:, :-1] - x
    low = heads(torch.tanh((x + delta * w["shift_mix"]) @ w["shift_down.weight"].T), mixer.options.shift_rank)
    mixed = {}
    for index, stream in enumerate("rwkvg"):
        amount = low[:, :, index] @ w["shift_up"][index] + w["shift_bias"][index]
        mixed[stream] = x + delta * amount
    r, k, v = (mixed[s] @ w[f"{name}_proj.weight"].T for s, name in (("r", "q"), ("k", "k"), ("v", "v")))
    decay = torch.tanh(mixed["w"] @ w["decay_down.weight"].T) @ w["decay_up.weight"].T + w["decay_up.bias"]
    decay = torch.exp(-torch.exp(decay))
    r, k, decay = (heads(part, sizes.head_k_dim) for part in (r, k, decay))
    v = heads(v, sizes.head_v_dim)
    groups = sizes.num_heads // sizes.num_kv_heads
    k, v, decay = (part.repeat_interleave(groups, 2) for part in (k, v, decay))
    state = x.new_zeros(x.shape[0], sizes.num_heads, sizes.head_k_dim, sizes.head_v_dim)
    outputs = []
    for t in range(x.shape[1]):
        update = k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append(torch.einsum("bhk,bhkv->bhv", r[:, t], state + w["bonus"].unsqueeze(-1) * update))
        state = decay[:, t].unsqueeze(-1) * state + update
    out = torch.stack(outputs, 1)
    deviation = out - out.mean(-1, keepdim=True)
    out = (deviation / torch.sqrt(deviation.square().mean(-1, keepdim=True) + 1e-5)).flatten(2)
    out = out * w["o_norm.weight"] + w["o_norm.bias"]
    return (out * F.silu(mixed["g"] @ w["g_proj.weight"].T)) @ w["o_proj.weight"].T


@pytest.mark.parametrize(
    "options", [{}, {"expand_k": 1.0, "expand_v": 2.0}, {"num_heads": 2, "shift_rank": 3, "decay_rank": 20}], ids=str
)
def test_time_mix_equals_its_formulas(options: dict) -> None:
    mixer, x = mixer_and_input("rwkv6", mixer={"type": "rwkv6", **options})
    assert_layer(mixer, x, time_mix(weights(mixer), x.double(), mixer))


@pytest.mark.parametrize("use_receptance", [True, False])
def test_channel_mix_equals_its_formulas(use_receptance: bool) -> None:
    ffn = build("rwkv6", ffn={"type": "channel_mix", "use_receptance": use_receptance}).model.layers[0].ffn
    x, w = torch.randn(2, 11, 32), weights(ffn)
    y = x.double()
    delta = F.pad(y, (0, 0, 1, 0))[:, :-1] - y
    key = F.relu((y + delta * w["key_mix"]) @ w["key_proj.weight"].T).square()
    out = key @ w["down_proj.weight"].T
    if use_receptance:
        out = torch.sigmoid((y + delta * w["receptance_mix"]) @ w["receptance_proj.weight"].T) * out
    assert_layer(ffn, x, out)


def test_channel_mix_follows_any_mixer() -> None:
    """Its token-shift state lives beside the keys and values of attention, and beside a recurrent state."""
    for mixer in ("attention", {"type": "attention", "window": 4}, "gla", "mamba"):
        model = build("mixed", mixer=mixer, ffn="channel_mix", num_hidden_layers=2)
        ids = torch.randint(1, 97, (2, 9))
        with torch.no_grad():
            whole, steps, cache = model(ids, use_cache=False).logits, [], None
            for part in (ids[:, :4], ids[:, 4:5], ids[:, 5:7], ids[:, 7:]):
                out = model(part, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                steps.append(out.logits)
        torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-4)


def test_initial_weights_are_the_published_ones() -> None:
    config = hf_arch.tiny_config("rwkv6", hidden_size=64, mixer={"type": "rwkv6"}, num_key_value_heads=4)
    layer = AutoModelForCausalLM.from_config(config).model.layers[1]
    mixer = layer.mixer
    for zero in (mixer.shift_mix, mixer.shift_bias, mixer.bonus, mixer.decay_down.weight, mixer.decay_up.bias):
        assert zero.eq(0).all()
    assert layer.ffn.key_mix.eq(0).all() and layer.ffn.receptance_mix.eq(0).all()
    for weight in (mixer.q_proj.weight, mixer.v_proj.weight, mixer.o_proj.weight, mixer.shift_down.weight):
        bound = 2**-2.5 * (6 / sum(weight.shape)) ** 0.5
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.02) and weight.abs().max() <= bound
    bound = 2**-2.5 * (6 / (64 + 5 * 32)) ** 0.5
    assert mixer.shift_up.abs().max().item() == pytest.approx(bound, rel=0.02)
    rows = mixer.decay_up.weight  # [32, 64]: more columns than rows
    torch.testing.assert_close(rows @ rows.T, 0.01 * 2 * torch.eye(32), rtol=0, atol=1e-5)
    assert layer.ffn.key_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_ranks_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="decay_rank 0 is not allowed"):
        hf_arch.tiny_config("rwkv6", mixer={"type": "rwkv6", "decay_rank": 0})
