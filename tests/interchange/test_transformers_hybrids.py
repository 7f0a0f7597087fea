"""transformers' hybrids with random weights: the same logits whole, padded and in steps, and back bit-equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    FalconH1Config,
    GraniteMoeHybridConfig,
    JambaConfig,
    KimiLinearConfig,
    MiniMaxConfig,
    NemotronHConfig,
    OlmoHybridConfig,
    RecurrentGemmaConfig,
)

import hf_arch
from hf_arch.core.errors import ConfigError

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **TOKENS,
}
BODY = {name: value for name, value in SIZES.items() if name != "num_hidden_layers"}
KINDS = ["linear_attention", "full_attention", "linear_attention"]

GRANITE = {
    "mamba_n_heads": 8,
    "mamba_d_state": 6,
    "layer_types": KINDS,
    "shared_intermediate_size": 24,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.2,
    "logits_scaling": 8.0,
}
FALCON = {"mamba_d_ssm": 48, "mamba_n_heads": 6, "mamba_d_state": 6}
JAMBA = {"attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 6, "num_experts": 4}
KIMI = {
    **SIZES,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 20,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "linear_head_dim": 8,
    "linear_num_heads": 3,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}
GEMMA = {name: value for name, value in BODY.items() if name != "max_position_embeddings"}
NEMOTRON = {
    **BODY,
    "head_dim": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 6,
    "ssm_state_size": 6,
    "n_groups": 2,
    "n_routed_experts": 4,
    "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 24,
}

CONFIGS = {
    "granitemoehybrid": GraniteMoeHybridConfig(**SIZES, **GRANITE, num_local_experts=4),
    "granitemoehybrid_dense_rope_tied": GraniteMoeHybridConfig(
        **SIZES,
        **{**GRANITE, "mamba_n_groups": 2},
        num_local_experts=0,
        position_embedding_type="rope",
        attention_bias=True,
        tie_word_embeddings=True,
        mamba_proj_bias=True,
    ),
    "falcon_h1": FalconH1Config(**SIZES, **FALCON),
    "falcon_h1_factors_norm_bias_tied": FalconH1Config(
        **SIZES,
        **{**FALCON, "mamba_d_ssm": None, "mamba_n_heads": 8},
        mamba_n_groups=2,
        mamba_rms_norm=True,
        mamba_norm_before_gate=False,
        mamba_d_conv=3,
        mamba_proj_bias=True,
        projectors_bias=True,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        time_step_limit=(0.1, 2.0),
        rope_parameters={"rope_type": "default", "rope_theta": 1e11},
        lm_head_multiplier=0.0390625,
        embedding_multiplier=5.656854249492381,
        mlp_multipliers=[0.8838834764831844, 0.5859375],
        key_multiplier=0.390625,
        attention_out_multiplier=0.9375,
        attention_in_multiplier=1.1,
        ssm_multipliers=[0.3535533905932738, 0.25, 0.3, 0.5, 1.4142135623730951],
        ssm_in_multiplier=1.25,
        ssm_out_multiplier=0.23570226039551587,
    ),
    "jamba": JambaConfig(**SIZES, **JAMBA),
    "jamba_dense_biases_tied": JambaConfig(
        **SIZES,
        **{**JAMBA, "num_experts": 1, "attn_layer_period": 2},
        mamba_dt_rank=5,
        mamba_proj_bias=True,
        mamba_conv_bias=False,
        tie_word_embeddings=True,
    ),
    "jamba_all_experts": JambaConfig(**SIZES, **JAMBA, expert_layer_period=1, expert_layer_offset=0),
    "kimi_linear": KimiLinearConfig(**KIMI),
    "kimi_linear_groups_low_rank": KimiLinearConfig(
        **{**KIMI, "layer_types": ["full_attention", "linear_attention", "full_attention"], "num_local_experts": 6},
        q_lora_rank=10,
        n_group=3,
        topk_group=2,
        n_shared_experts=2,
        linear_conv_kernel_dim=3,
        mlp_layer_types=["sparse", "dense", "sparse"],
        norm_topk_prob=False,
    ),
    "kimi_linear_dense": KimiLinearConfig(**KIMI, mlp_layer_types=["dense"] * 3),
    "minimax": MiniMaxConfig(**SIZES, num_local_experts=4, block_size=8),
    "minimax_factors_window_tied": MiniMaxConfig(
        **SIZES,
        num_local_experts=6,
        num_experts_per_tok=3,
        block_size=8,
        head_dim=6,
        layer_types=KINDS,
        sliding_window=7,
        tie_word_embeddings=True,
        linear_attn_alpha_factor=1.3,
        linear_attn_beta_factor=0.7,
        full_attn_alpha_factor=0.9,
        full_attn_beta_factor=1.2,
        mlp_alpha_factor=1.1,
        mlp_beta_factor=0.8,
    ),
    "nemotron_h": NemotronHConfig(
        **NEMOTRON, layers_block_type=["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"]
    ),
    "nemotron_h_experts_biases": NemotronHConfig(
        **NEMOTRON,
        layers_block_type=["linear_attention", "moe", "full_attention", "moe"],
        use_bias=True,
        use_conv_bias=False,
        n_group=2,
        routed_scaling_factor=2.5,
        time_step_min=0.2,
    ),
    "olmo_hybrid": OlmoHybridConfig(**SIZES, layer_types=KINDS, rope_parameters=None),
    "olmo_hybrid_rope_sizes_bias_tied": OlmoHybridConfig(
        **SIZES,
        layer_types=["full_attention", "linear_attention", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=12,
        linear_conv_kernel_dim=3,
        linear_allow_neg_eigval=False,
        attention_bias=True,
        tie_word_embeddings=True,
        rms_norm_eps=1e-3,
    ),
    "recurrent_gemma": RecurrentGemmaConfig(
        **GEMMA, block_types=["recurrent", "attention"], attention_window_size=7, num_hidden_layers=3
    ),
    "recurrent_gemma_wide_bias_untied": RecurrentGemmaConfig(
        **GEMMA,
        num_hidden_layers=4,
        lru_width=48,
        conv1d_width=3,
        attention_bias=True,
        tie_word_embeddings=False,
        logits_soft_cap=5.0,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
    ),
}


def random_model(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.1)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_same_logits_whole_padded_and_in_steps(name: str) -> None:
    config = CONFIGS[name]
    source = random_model(config)
    ours = hf_arch.from_foreign(config.to_dict(), source.state_dict())
    ids = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(1))
    whole = source(ids, use_cache=False).logits
    torch.testing.assert_close(ours(ids).logits, whole, rtol=0, atol=1e-5)
    mask = (torch.arange(20) >= torch.tensor([[0], [6]])).long()
    alone = source(ids[1:, 6:], use_cache=False).logits  # some of theirs let padding in where projections have biases
    torch.testing.assert_close(ours(ids, attention_mask=mask).logits[1:, 6:], alone, rtol=0, atol=1e-5)
    # Some of theirs decode otherwise than they prefill (nemotron_h leaves the least step size out).
    cache = DynamicCache(config=ours.config)
    steps = [ours(part, past_key_values=cache).logits for part in ids.split([17, 1, 1, 1], 1)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_is_bit_equal(name: str) -> None:
    config = CONFIGS[name]
    source = random_model(config)
    values, state = hf_arch.to_foreign(hf_arch.from_foreign(config.to_dict(), source.state_dict()), config.model_type)
    values.pop("model_type")
    again = AutoModelForCausalLM.from_config(type(config)(**values)).eval()
    missing, unexpected = again.load_state_dict(state, strict=False)
    made = ("slope_rate", "_decay", "lm_head.weight")  # by MiniMax's own code from the sizes; tied
    assert not unexpected and all(key.endswith(made) for key in missing)
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in state.items())
    ids = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(ids, use_cache=False).logits, source(ids, use_cache=False).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_a_tied_head_is_tied_there_or_refused(name: str) -> None:
    config = CONFIGS[name]
    ours = hf_arch.from_foreign(config.to_dict(), random_model(config).state_dict()).config
    ours.tie_word_embeddings = True
    tied = AutoModelForCausalLM.from_config(ours).eval()
    try:
        values, state = hf_arch.to_foreign(tied, config.model_type)
    except ConfigError as error:
        assert "tie_word_embeddings: True cannot be expressed" in str(error)
        return
    values.pop("model_type")
    again = AutoModelForCausalLM.from_config(type(config)(**values)).eval()
    again.load_state_dict(state, strict=False)
    ids = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(tied(ids, use_cache=False).logits, again(ids, use_cache=False).logits)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("granitemoehybrid", {"hidden_act": "gelu"}, "config.hidden_act: 'gelu' is not supported by granitemoehybrid"),
        ("granitemoehybrid", {"position_embedding_type": "nope"}, "config.position_embedding_type: 'nope' is not"),
        (
            "granitemoehybrid",
            {"layer_types": ["moe"] * 3},
            "config.layer_types: .* use linear_attention or full_attent",
        ),
        ("falcon_h1", {"hidden_act": "gelu"}, "config.hidden_act: 'gelu' is not supported by falcon_h1"),
        ("falcon_h1", {"projectors_bias": True}, "config.projectors_bias: True is not supported by falcon_h1"),
        ("falcon_h1", {"ssm_multipliers": [1.0]}, "config.ssm_multipliers: \\[1.0\\] is not allowed; use 5 numbers"),
        ("falcon_h1", {"key_multiplier": 0}, "config.key_multiplier: 0 is not allowed"),
        ("falcon_h1", {"attn_layer_indices": [1]}, "config.attn_layer_indices: \\[1\\] is not supported by falcon_h1"),
        ("jamba", {"attn_layer_offset": 7}, "config.attn_layer_offset: 7 is not allowed; use 0 to 2"),
        ("jamba_dense_biases_tied", {"output_router_logits": True}, "output_router_logits: True is not supported"),
        ("kimi_linear", {"attention_bias": True}, "config.attention_bias: True is not supported by kimi_linear"),
        ("kimi_linear", {"num_key_value_heads": 2}, "config.num_key_value_heads: 2 is not supported by kimi_linear"),
        ("kimi_linear", {"mlp_layer_types": ["moe"] * 3}, "config.mlp_layer_types: .* use dense or sparse"),
        ("olmo_hybrid", {"linear_num_value_heads": 8}, "config.linear_num_value_heads: 8 is not supported by olmo_hy"),
        ("olmo_hybrid", {"layer_types": ["full_attention"] * 3}, "use linear_attention and full_attention, one f"),
        ("recurrent_gemma", {"block_types": ["mamba"]}, "config.block_types: .* use a list of recurrent, attention"),
        ("minimax", {"layer_types": ["conv"] * 3}, "config.layer_types: .* use linear_attention or full_attention"),
        ("minimax", {"router_jitter_noise": 0.1}, "config.router_jitter_noise: 0.1 is not supported by minimax"),
        ("nemotron_h", {"moe_latent_size": 8}, "config.moe_latent_size: 8 is not supported by nemotron_h"),
        ("nemotron_h", {"layer_types": ["mlp"]}, "config.layer_types: 'mlp' of layer 0 needs one of"),
        ("nemotron_h", {"num_nextn_predict_layers": 1}, "config.num_nextn_predict_layers: 1 is not supported"),
    ],
)
def test_what_is_not_supported_is_named(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hf_arch.from_foreign({**CONFIGS[name].to_dict(), **changes}, {})


def test_layers_that_do_not_come_periodically_are_refused() -> None:
    mamba = {"type": "mamba", "inner_norms": True}
    config = hf_arch.tiny_config(
        "mixed", num_hidden_layers=4, mixer=["attention", "attention", mamba, mamba], position="none", qk_norm=False
    )
    with pytest.raises(ConfigError, match="layers \\[0, 1\\] cannot be expressed in a jamba checkpoint"):
        hf_arch.to_foreign(AutoModelForCausalLM.from_config(config), "jamba")
