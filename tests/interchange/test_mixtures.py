"""transformers' Mixtral, DeepSeek-V3 and Mamba-2 with random weights: the same numbers here, and back bit-equal."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DynamicCache,
    Mamba2Config,
    MixtralConfig,
)

import hf_arch
from hf_arch.core.errors import ConfigError

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LATENT = {
    **SIZES,
    "moe_intermediate_size": 12,
    "q_lora_rank": 12,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.7,
    "mscale_all_dim": 0.8,
}
STATE_SPACE = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16, "num_heads": 4}
CONFIGS = {
    "mixtral": MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=6, router_aux_loss_coef=0.02),
    "mixtral_window": MixtralConfig(**SIZES, num_key_value_heads=1, num_experts_per_tok=3, sliding_window=7),
    "deepseek_v3": DeepseekV3Config(**LATENT),
    "deepseek_v3_yarn_halves": DeepseekV3Config(**LATENT, rope_interleave=False, rope_parameters=YARN),
    "deepseek_v3_dense": DeepseekV3Config(**{**LATENT, "q_lora_rank": None, "first_k_dense_replace": 3}),
    "deepseek_v3_biases": DeepseekV3Config(
        **{**LATENT, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0},
        attention_bias=True,
        norm_topk_prob=False,
        n_shared_experts=2,
        tie_word_embeddings=True,
    ),
    "mamba2_groups": Mamba2Config(**STATE_SPACE, state_size=8, n_groups=2, chunk_size=8),
    "mamba2_biases": Mamba2Config(
        **STATE_SPACE, state_size=8, n_groups=4, use_bias=True, use_conv_bias=False, conv_kernel=3, chunk_size=8
    ),
}


def random_model(name: str):
    """transformers' own model, every parameter and buffer moved off its initial value."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "inv_freq" not in key:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def ids(batch: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    source = random_model(request.param)
    return source, hf_arch.from_foreign(CONFIGS[request.param].to_dict(), source.state_dict())


@torch.no_grad()
def test_same_logits_padded_or_not(pair):
    source, ours = pair
    torch.testing.assert_close(ours(ids()).logits, source(ids()).logits, rtol=0, atol=2e-5)
    mask = torch.ones_like(ids())
    mask[1, :5] = 0
    # Against the row alone: transformers' Mamba-2 lets the bias of its input projection into padding.
    actual, expected = ours(ids(), attention_mask=mask).logits[1, 5:], source(ids()[1:, 5:]).logits[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_decoding_equals_the_plain_forward(pair):
    """A step runs over the latents alone, without the keys and values that the whole sequence expands."""
    source, ours = pair
    cache = DynamicCache(config=ours.config)
    parts = [ours(part, past_key_values=cache).logits for part in ids().split([15, 1, 5, 1, 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), source(ids()).logits, rtol=0, atol=2e-5)


def test_same_gradients(pair):
    source, ours = pair
    for model in pair:
        model.zero_grad()
        model(ids(), labels=ids(), use_cache=False).loss.backward()
    holder = copy.deepcopy(ours)  # of gradients, to have them converted as parameters are
    with torch.no_grad():
        for place, parameter in zip(holder.parameters(), ours.parameters(), strict=True):
            place.copy_(torch.zeros_like(place) if parameter.grad is None else parameter.grad)
    _, gradients = hf_arch.to_foreign(holder, source.config.model_type)
    for key, parameter in source.named_parameters():
        scale = parameter.grad.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(gradients[key] / scale, parameter.grad / scale, rtol=0, atol=1e-4, msg=key)


def test_round_trip_is_bit_equal(pair):
    source, ours = pair
    config, state = hf_arch.to_foreign(ours, source.config.model_type)
    expected = source.state_dict()
    if source.config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
    config.pop("model_type")
    again = AutoModelForCausalLM.from_config(type(source.config)(**config)).eval()
    again.load_state_dict(state, strict=not source.config.tie_word_embeddings)
    with torch.no_grad():
        torch.testing.assert_close(again(ids()).logits, source(ids()).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
@torch.no_grad()
def test_files_with_single_experts_are_read(name, tmp_path):
    """transformers writes one tensor an expert, as the published checkpoints have them."""
    source = random_model(name)
    source.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert not any(key.endswith("gate_up_proj") for key in state)
    ours = hf_arch.from_foreign(source.config.to_dict(), state)
    torch.testing.assert_close(ours(ids()).logits, source(ids()).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise: 0.1"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method: 'greedy'"),
        ("mamba2_groups", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ("mamba2_groups", {"num_heads": 3}, "num_heads: 3"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(name, change, message):
    with pytest.raises(ConfigError, match=message):
        hf_arch.from_foreign({**CONFIGS[name].to_dict(), **change}, {})


@pytest.mark.parametrize(
    ("name", "model_type", "message"),
    [
        ("llama", "mixtral", "no layer is 'moe'"),
        ("llama", "deepseek_v3", "no layer is 'mla'"),
        ("moe", "mixtral", "ffn"),
        ("gla", "mamba2", "mixer"),
        ("gla", "delta_net", "no layer is 'delta_net'"),
    ],
)
def test_what_they_cannot_express_is_an_error(name, model_type, message):
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name))
    with pytest.raises(ConfigError, match=message):
        hf_arch.to_foreign(model, model_type)
