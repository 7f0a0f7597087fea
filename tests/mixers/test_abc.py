"""Attention with bounded-memory control against its formulas, also with a cache and padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.layers.contract import LayerContext
from hf_arch.layers.layout import build_layout
from tests.mixers.layers import assert_layer, causal_conv, heads, mixer_and_input, rms, weights


def rotary(length: int, size: int) -> tuple[Tensor, Tensor]:
    """(cos, sin) [1, length, size] of RoPE in half-split form, base 10000."""
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    angles = torch.cat((angles, angles), -1)[None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos.double().unsqueeze(2) + turned * sin.double().unsqueeze(2)


def abc(w: dict[str, Tensor], x: Tensor, mixer: object, embeddings: tuple[Tensor, Tensor] | None) -> Tensor:
    """The layer as the paper writes it: at every step the slots are softmax averages over all tokens so far."""
    o, sizes = mixer.options, mixer.sizes
    q, k, v = (x @ w[f"{name}_proj.weight"].T for name in "qkv")
    if o.use_short_conv:
        q, k, v = (F.silu(causal_conv(p, w[f"{name}_conv.weight"])) for name, p in zip("qkv", (q, k, v), strict=True))
    q, k, v = heads(q, sizes.head_k_dim), heads(k, sizes.head_k_dim), heads(v, sizes.head_v_dim)
    if embeddings is not None:
        q, k = rotate(q, *embeddings), rotate(k, *embeddings)
    s = heads(x @ w["s_proj.weight"].T, o.num_slots).clamp(o.clamp_min, o.clamp_max)
    groups = sizes.num_heads // sizes.num_kv_heads
    k, v, s = (part.repeat_interleave(groups, 2) for part in (k, v, s))
    outputs = []
    for t in range(x.shape[1]):
        share = s[:, : t + 1].softmax(1)
        keys = torch.einsum("bshm,bshk->bhmk", share, k[:, : t + 1])
        values = torch.einsum("bshm,bshv->bhmv", share, v[:, : t + 1])
        read = torch.einsum("bhmk,bhk->bhm", keys, q[:, t] / sizes.head_k_dim**0.5).softmax(-1)
        outputs.append(torch.einsum("bhm,bhmv->bhv", read, values))
    out = rms(torch.stack(outputs, 1), w.get("o_norm.weight", torch.ones(())), 1e-6)
    if o.use_output_gate:
        out = out * F.silu(heads(x @ w["g_proj.weight"].T, sizes.head_v_dim))
    return out.flatten(2) @ w["o_proj.weight"].T


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_slots": 5, "use_short_conv": True, "expand_k": 1.0, "clamp_min": -0.3, "clamp_max": 0.2},
        {"num_slots": 1, "use_rope": False, "use_output_gate": False, "clamp_min": None},
        {"num_slots": 3, "output_norm_affine": False, "clamp_min": None, "clamp_max": None},
    ],
    ids=str,
)
def test_layer_equals_its_formulas(options: dict) -> None:
    mixer, x = mixer_and_input("abc", mixer={"type": "abc", **options})
    embeddings = rotary(x.shape[1], mixer.sizes.head_k_dim) if mixer.options.use_rope else None
    assert_layer(mixer, x, abc(weights(mixer), x.double(), mixer, embeddings), position_embeddings=embeddings)


def test_padding_has_no_weight_in_the_slots() -> None:
    """A layer without rotation gives each row alone what it gives the same row between paddings."""
    mixer, x = mixer_and_input("abc", mixer={"type": "abc", "num_slots": 3, "use_rope": False})
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[0, :4] = mask[1, 7:] = 0
    with torch.no_grad():
        out = mixer(x, LayerContext(layout=build_layout(mask, None, has_state=False)))
        torch.testing.assert_close(out[:1, 4:], mixer(x[:1, 4:]), rtol=0, atol=1e-5)
        torch.testing.assert_close(out[1:, :7], mixer(x[1:, :7]), rtol=0, atol=1e-5)


def test_an_odd_key_dim_cannot_rotate() -> None:
    with pytest.raises(ConfigError, match=r"mixer abc: expand_k .* heads of 3 features, an odd number"):
        hf_arch.tiny_config("abc", hidden_size=24, mixer={"type": "abc"})
