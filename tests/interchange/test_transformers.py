"""transformers' own models with random weights: converted they give the same logits, and go back bit-equal."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    CohereConfig,
    DiffLlamaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3NextConfig,
    SmolLM3Config,
)

import hf_arch
from hf_arch.core.errors import ConfigError

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

DELTA = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}
HYBRID = ["linear_attention", "linear_attention", "full_attention"]

SCAN = {"mamba_n_heads": 8, "mamba_d_head": "auto", "mamba_d_state": 6, "mamba_expand": 2}


def _rope(**parameters):
    return {"rope_theta": 5e4, **parameters}


CONFIGS = {
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt2_untied_narrow": GPT2Config(
        vocab_size=97, n_embd=32, n_layer=1, n_head=2, n_positions=64, n_inner=40, tie_word_embeddings=False
    ),
    "gpt2_unscaled": GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, scale_attn_weights=False
    ),
    "gpt2_scaled_by_layer": GPT2Config(
        vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=64, scale_attn_by_inverse_layer_idx=True
    ),
    "llama": LlamaConfig(**SIZES),
    "llama_gqa_biases": LlamaConfig(**SIZES, num_key_value_heads=2, attention_bias=True, mlp_bias=True),
    "llama_head_dim_tied": LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=True),
    "llama_linear": LlamaConfig(**SIZES, rope_parameters=_rope(rope_type="linear", factor=2.0)),
    "llama_dynamic": LlamaConfig(
        **{**SIZES, "max_position_embeddings": 16}, rope_parameters=_rope(rope_type="dynamic", factor=2.0)
    ),
    "llama_yarn": LlamaConfig(
        **SIZES, rope_parameters=_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
    ),
    "llama3": LlamaConfig(
        **SIZES,
        rope_parameters=_rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    "mistral_window": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=7),
    "mistral_full": MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=None),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16),
    "qwen3_some_windows": Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=16, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "mamba": MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4),
    "mamba_biases": MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, use_bias=True, conv_kernel=3),
    "granite": GraniteConfig(
        **SIZES, embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.2, logits_scaling=8.0
    ),
    "granite_gqa_biases_tied": GraniteConfig(
        **SIZES,
        num_key_value_heads=2,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_parameters=_rope(rope_type="linear", factor=2.0),
    ),
    "smollm3": SmolLM3Config(**SIZES, num_key_value_heads=2, no_rope_layer_interval=2, **TOKENS),
    "smollm3_windows_biases_untied": SmolLM3Config(
        **SIZES,
        no_rope_layers=[0, 1, 0],
        use_sliding_window=True,
        sliding_window=5,
        attention_bias=True,
        tie_word_embeddings=False,
        num_key_value_heads=1,
        **TOKENS,
    ),
    "cohere": CohereConfig(**SIZES, num_key_value_heads=2, **TOKENS),
    "cohere_biases_untied": CohereConfig(
        **SIZES, attention_bias=True, logit_scale=0.25, tie_word_embeddings=False, layer_norm_eps=1e-3, **TOKENS
    ),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "gpt_neox_in_turn_no_bias_tied": GPTNeoXConfig(
        **SIZES,
        use_parallel_residual=False,
        attention_bias=False,
        hidden_act="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
    "diffllama": DiffLlamaConfig(**SIZES, num_key_value_heads=2, head_dim=8),
    "diffllama_heads_bias_tied": DiffLlamaConfig(
        **{**SIZES, "num_attention_heads": 8},
        num_key_value_heads=4,
        head_dim=16,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters=_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    "qwen3_next": Qwen3NextConfig(**SIZES, **DELTA, **EXPERTS, num_key_value_heads=2, layer_types=HYBRID),
    "qwen3_next_some_dense_tied": Qwen3NextConfig(
        **SIZES,
        **{**DELTA, "linear_num_key_heads": 4, "linear_value_head_dim": 6},
        **EXPERTS,
        mlp_only_layers=[1],
        norm_topk_prob=False,
        tie_word_embeddings=True,
        layer_types=["full_attention", *HYBRID[1:]],
        rope_parameters=_rope(rope_type="default", partial_rotary_factor=0.5),
    ),
    "qwen3_next_dense": Qwen3NextConfig(
        **SIZES, **DELTA, **EXPERTS, mlp_only_layers=[0, 1, 2], layer_types=HYBRID, num_key_value_heads=1
    ),
    "qwen3_5": Qwen3_5TextConfig(**SIZES, **DELTA, num_key_value_heads=2, layer_types=HYBRID),
    "qwen3_5_tied": Qwen3_5TextConfig(
        **SIZES, **{**DELTA, "linear_conv_kernel_dim": 3}, layer_types=HYBRID, tie_word_embeddings=True
    ),
    "qwen3_5_experts": Qwen3_5MoeTextConfig(
        **{name: value for name, value in SIZES.items() if name != "intermediate_size"},
        **DELTA,
        **EXPERTS,
        num_key_value_heads=2,
        layer_types=HYBRID,
    ),
    "lfm2": Lfm2Config(**SIZES, num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"]),
    "lfm2_width_biases_untied": Lfm2Config(
        **SIZES,
        full_attn_idxs=[0],
        num_key_value_heads=1,
        conv_bias=True,
        conv_L_cache=4,
        block_multiple_of=10,
        block_ffn_dim_multiplier=1.4,
        tie_word_embeddings=False,
    ),
    "lfm2_given_width": Lfm2Config(
        **SIZES, num_key_value_heads=4, full_attn_idxs=[2], block_auto_adjust_ff_dim=False, norm_eps=1e-3
    ),
    "bamba": BambaConfig(**SIZES, **SCAN, num_key_value_heads=2, attn_layer_indices=[1], **TOKENS),
    "bamba_groups_biases_tied": BambaConfig(
        **SIZES,
        **{**SCAN, "mamba_n_groups": 2, "mamba_d_conv": 3},
        num_key_value_heads=1,
        attn_layer_indices=[0, 2],
        attention_bias=True,
        mlp_bias=True,
        mamba_proj_bias=True,
        mamba_conv_bias=False,
        tie_word_embeddings=True,
        time_step_limit=(0.01, 1.5),
        **TOKENS,
    ),
    "gpt_oss": GptOssConfig(
        **SIZES, head_dim=8, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, sliding_window=5
    ),
    "gpt_oss_other_clamps_no_bias_tied": GptOssConfig(
        **SIZES,
        head_dim=16,
        num_key_value_heads=1,
        num_local_experts=6,
        num_experts_per_tok=3,
        layer_types=["full_attention"] * 3,
        attention_bias=False,
        swiglu_alpha=1.3,
        swiglu_limit=0.5,
        tie_word_embeddings=True,
        rope_parameters=_rope(rope_type="default"),
    ),
}


def _random(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_same_logits_and_back(name):
    config = CONFIGS[name]
    source = _random(config)
    ours = hf_arch.from_foreign(config.to_dict(), source.state_dict())
    ids = torch.randint(3, 97, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, source(ids).logits, rtol=0, atol=1e-5)
    values, state = hf_arch.to_foreign(ours, config.model_type)
    values.pop("model_type")
    again = AutoModelForCausalLM.from_config(type(config)(**values)).eval()
    missing, unexpected = again.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    for key, tensor in state.items():
        assert torch.equal(tensor, source.state_dict()[key]), key
    with torch.no_grad():
        assert torch.equal(again(ids).logits, source(ids).logits)


@pytest.mark.parametrize(
    ("architecture", "model_type", "message"),
    [
        ("hybrid", "llama", r"^norm: 'layernorm' cannot be expressed in a llama checkpoint, where it is 'rmsnorm'$"),
        ("gla", "llama", r"^mixer of layer 0: 'GatedLinearAttention' cannot be expressed in a llama"),
        ("llama", "mistral", r"^mixer of layer 0 qk_norm: 1e-06 cannot be expressed in a mistral"),
        ("llama", "lama", r"^model_type: 'lama' is not known; nearest: 'llama'"),
        ("llama", "deepseek_v4", "^model_type: 'deepseek_v4' cannot be converted: it has attention to compressed keys"),
        ("llama", "qwen4_exp", "^model_type: 'qwen4_exp' cannot be converted: it has attention to tokens that"),
        ("llama", "qwen3_5_moe", "^model_type: 'qwen3_5_moe' is a model of images and text; .* 'qwen3_5_moe_text'"),
    ],
)
def test_what_cannot_be_said_is_refused(architecture, model_type, message):
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(architecture))
    with pytest.raises(ConfigError, match=message):
        hf_arch.to_foreign(model, model_type)


def test_mistakes_in_a_checkpoint_are_one_line():
    config, state = CONFIGS["llama"].to_dict(), dict(_random(CONFIGS["llama"]).state_dict())
    cases = [
        ({**config, "rotary_magic": 2}, state, r"^config: 'rotary_magic' is not an option of llama"),
        ({**config, "hidden_act": "mish"}, state, r"^config.hidden_act: 'mish' is not supported by llama; allowed: "),
        ({"model_type": None}, state, r"^config: no `model_type`; allowed: "),
        (config, {**state, "extra.weight": torch.ones(1)}, r"^state_dict: 'extra.weight' has no place in hfa_llama"),
        (
            config,
            {k: v for k, v in state.items() if k != "model.norm.weight"},
            r"^state_dict: no tensor 'model.norm.weight'",
        ),
        (config, {**state, "model.norm.weight": torch.ones(5)}, r"model.norm.weight has shape \[5\], expected \[32\]$"),
    ]
    for values, tensors, message in cases:
        with pytest.raises(ConfigError, match=message):
            hf_arch.from_foreign(values, tensors)
