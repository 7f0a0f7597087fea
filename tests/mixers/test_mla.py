"""Latent attention against its formulas, over the latents alone, with every kind of attention, and what it caches."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import hf_arch
from hf_arch.checks import check_model
from hf_arch.core.errors import ConfigError
from hf_arch.layers.contract import LayerContext
from hf_arch.layers.mixers.mla import rope_mscale
from tests.mixers.layers import build, rms, weights

SIZES = {"type": "mla", "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12}


def rotated(x: Tensor, interleaved: bool) -> Tensor:
    """RoPE on [B, T, ..., R] with theta 10000, as rotations of complex numbers."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1]).double()[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
    turn = torch.polar(torch.ones_like(angles), angles).view(1, x.shape[1], *[1] * (x.dim() - 3), half)
    pairs = x.unflatten(-1, (half, 2)) if interleaved else x.unflatten(-1, (2, half)).mT
    return torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn).flatten(-2)


def latent_attention(w: dict[str, Tensor], x: Tensor, heads: int, o: object) -> Tensor:
    """The layer as the paper writes it; scores are the same for every order of the rotary features."""
    if o.q_lora_rank is None:
        q = x @ w["q_proj.weight"].T
    else:
        q = (
            rms(x @ w["q_a_proj.weight"].T + w.get("q_a_proj.bias", 0), w["q_norm.weight"], 1e-6)
            @ w["q_b_proj.weight"].T
        )
    q = q.unflatten(-1, (heads, -1))
    latent, r = (x @ w["kv_a_proj.weight"].T + w.get("kv_a_proj.bias", 0)).split(
        [o.kv_lora_rank, o.qk_rope_head_dim], -1
    )
    kv = (rms(latent, w["kv_norm.weight"], o.latent_norm_eps) @ w["kv_b_proj.weight"].T).unflatten(-1, (heads, -1))
    k, v = kv.split([o.qk_nope_head_dim, o.v_head_dim], -1)
    q_nope, q_rope = q.split([o.qk_nope_head_dim, o.qk_rope_head_dim], -1)
    q_rope, r = rotated(q_rope, o.rope_interleave), rotated(r, o.rope_interleave)
    scores = torch.einsum("bthd,bshd->bhts", q_nope, k) + torch.einsum("bthd,bsd->bhts", q_rope, r)
    scores = scores / math.sqrt(o.qk_nope_head_dim + o.qk_rope_head_dim)
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    out = torch.einsum("bhts,bshd->bthd", scores.masked_fill(future, -math.inf).softmax(-1), v)
    return out.flatten(2) @ w["o_proj.weight"].T + w.get("o_proj.bias", 0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "options",
    [{}, {"q_lora_rank": 12, "rope_interleave": True}, {"q_lora_rank": 12, "bias": True, "v_head_dim": 4}],
    ids=str,
)
@torch.no_grad()
def test_layer_equals_its_formulas_whole_and_step_by_step(options: dict, attention: str) -> None:
    model = build("mla", mixer={**SIZES, **options}, num_hidden_layers=1)
    model.set_attn_implementation(attention)
    mixer, x = model.model.layers[0].mixer, torch.randn(2, 11, 32)
    expected = latent_attention(weights(mixer), x.double(), 4, mixer.options)
    rotary, cache = model.model.rotary_embs[0], DynamicCache(config=model.config)
    causal = torch.ones(11, 11, dtype=torch.bool).tril()[None, None] if attention == "eager" else None

    def run(start: int, stop: int, cache: DynamicCache | None) -> Tensor:
        positions = rotary(x, torch.arange(start, stop)[None])
        mask = causal[:, :, start:stop, :stop] if causal is not None and stop - start > 1 else None
        context = LayerContext(attention_mask=mask, position_embeddings=positions, cache=cache)
        return mixer(x[:, start:stop], context=context)

    torch.testing.assert_close(run(0, 11, None).double(), expected, rtol=0, atol=2e-5)
    steps = [run(0, 6, cache), *(run(t, t + 1, cache) for t in range(6, 11))]
    torch.testing.assert_close(torch.cat(steps, 1).double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("heads", [2, 8])
@torch.no_grad()
def test_cache_holds_latents_whatever_the_heads(heads: int) -> None:
    model = build("mla", mixer=SIZES, num_attention_heads=heads)
    cache = DynamicCache(config=model.config)
    model(torch.ones(1, 9, dtype=torch.long), past_key_values=cache)
    for layer in cache.layers:
        assert layer.keys.shape == (1, 1, 9, 20) and layer.values.shape == (1, 1, 9, 4)
    assert hf_arch.cost(model.config, 9).state_bytes(9) == 2 * 9 * (20 + 4) * 4  # layers, tokens, numbers, bytes


@torch.no_grad()
def test_a_step_expands_nothing() -> None:
    """Its FLOPs grow with the context as scores and sums over latents do, not as keys and values of all heads."""
    config = hf_arch.tiny_config("mla", mixer=SIZES)
    cost = hf_arch.cost(config, 64)
    assert cost.decode_flops(101) - cost.decode_flops(100) == 2 * 2 * 4 * (20 + 4 + 20)


def test_yarn_scales_queries_and_keys() -> None:
    assert rope_mscale({"rope_type": "yarn", "factor": 40.0, "mscale_all_dim": 1.0}) == 0.1 * math.log(40) + 1
    assert rope_mscale({"rope_type": "default", "factor": 40.0, "mscale_all_dim": 1.0}) == 1.0
    assert rope_mscale({"rope_type": "yarn", "factor": 40.0}) == 1.0


def test_odd_rotary_sizes_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"qk_rope_head_dim 5 is odd, .* 4 or 6"):
        hf_arch.tiny_config("mla", mixer={**SIZES, "qk_rope_head_dim": 5})


@torch.no_grad()
def test_offloaded_weights_are_fetched_for_a_step() -> None:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("mla")).eval()
    ids = torch.randint(3, 97, (1, 6))
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options)
    assert torch.equal(cpu_offload(model, execution_device="cpu").generate(ids, **options), expected)


def test_without_positions_it_holds_every_invariant():
    config = hf_arch.tiny_config("mixed", mixer={**SIZES, "position": "none"}, num_hidden_layers=2)
    assert [result for result in check_model(config) if not result.passed] == []
    ids = torch.randint(3, 97, (1, 5), generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    swapped = ids.clone()
    swapped[:, :9] = ids[:, :9].roll(1, 1)
    first = hf_arch.tiny_config("mixed", mixer={**SIZES, "position": "none"}, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_config(first).eval()
    with torch.no_grad():  # one layer of it sees a set of tokens, in no order
        torch.testing.assert_close(model(swapped).logits[:, -1], model(ids).logits[:, -1])
