"""nanoGPT and litgpt checkpoints, made from transformers' models whose tensors are laid out as those code bases do."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

import hf_arch
from hf_arch.core.errors import ConfigError


def _random(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _check(source, config, state):
    ours, ids = hf_arch.from_foreign(config, state), torch.randint(0, 97, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, source(ids).logits, rtol=0, atol=1e-5)
    values, again = hf_arch.to_foreign(ours, config["model_type"])
    return values, again


def test_nanogpt():
    source = _random(
        GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, activation_function="gelu")
    )
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {
        key: tensor.T.contiguous() if key.endswith(transposed) else tensor
        for key, tensor in source.state_dict().items()
    }
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()  # its causal mask, a buffer
    config = {"model_type": "nanogpt", "vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "block_size": 64}
    _, again = _check(source, {**config, "bias": True, "dropout": 0.0}, state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.items())
    assert set(state) - set(again) == {"lm_head.weight", "transformer.h.0.attn.bias"}


def test_nanogpt_without_biases_round_trips():
    model = AutoModelForCausalLM.from_config(
        hf_arch.tiny_config(
            "gpt2",
            hidden_act="gelu",
            norm="layernorm_nobias",
            attention_bias=False,
            mlp_bias=False,
            intermediate_size=128,
        )
    )
    config, state = hf_arch.to_foreign(model, "nanogpt")
    assert config["bias"] is False and not any(key.endswith("bias") for key in state)
    again = hf_arch.from_foreign(config, state)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in again.state_dict().items())


LITGPT = {
    "model_type": "litgpt",
    "name": "tiny",
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_query_groups": 2,
    "head_size": 8,
    "padded_vocab_size": 97,
    "intermediate_size": 48,
    "block_size": 64,
    "norm_eps": 1e-6,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "parallel_residual": False,
    "bias": False,
    "rotary_percentage": 1.0,
    "rope_base": 10000,
}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# (options of litgpt, the same for transformers), with what a file of litgpt 0.5.13 holds beside the sizes.
LITGPT_OPTIONS = {
    "plain": ({}, {}),
    "legacy": ({"legacy_qkv": True}, {}),
    "windows": ({"sliding_window_size": 5, "sliding_window_indices": None}, {"sliding_window": 5}),
    "window_of_one_layer": (
        {"sliding_window_size": 5, "sliding_window_indices": [0, 1]},
        {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "llama3": (
        {"rope_adjustments": {**LLAMA3, "original_max_seq_len": 16}},
        {"rope_parameters": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 16}},
    ),
    "condensed": (
        {"rope_condense_ratio": 4, "rope_base": 500},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    ),
    "no_experts": (
        {
            **dict.fromkeys(("n_shared_expert", "n_expert_groups", "n_topk_groups", "n_topk_scores_per_group")),
            **dict.fromkeys(("first_k_dense_replace", "moe_intermediate_size", "rope_local_base_freq", "rope_indices")),
            "n_expert": 0,
            "n_expert_per_token": 0,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
        },
        {},
    ),
}


@pytest.mark.parametrize("name", LITGPT_OPTIONS)
def test_litgpt(name):
    options, same = LITGPT_OPTIONS[name]
    legacy = options.get("legacy_qkv", False)
    kind = Qwen3Config if "layer_types" in same else MistralConfig if "sliding_window" in same else LlamaConfig
    source = _random(
        kind(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            **same,
        )
    )
    theirs = source.state_dict()
    state = {
        "transformer.wte.weight": theirs["model.embed_tokens.weight"],
        "transformer.ln_f.weight": theirs["model.norm.weight"],
        "lm_head.weight": theirs["lm_head.weight"],
    }
    for index in range(2):
        layer, block = f"model.layers.{index}", f"transformer.h.{index}"
        q, k, v = (theirs[f"{layer}.self_attn.{name}_proj.weight"] for name in "qkv")
        if legacy:
            rows = []
            for group in range(2):
                rows += [q[16 * group : 16 * group + 16], k[8 * group : 8 * group + 8], v[8 * group : 8 * group + 8]]
            state[f"{block}.attn.attn.weight"] = torch.cat(rows)
        else:
            state[f"{block}.attn.qkv.weight"] = torch.cat([q, k, v])
        for part, key in (
            ("attn.proj", "self_attn.o_proj"),
            ("norm_1", "input_layernorm"),
            ("norm_2", "post_attention_layernorm"),
            ("mlp.fc_1", "mlp.gate_proj"),
            ("mlp.fc_2", "mlp.up_proj"),
            ("mlp.proj", "mlp.down_proj"),
        ):
            state[f"{block}.{part}.weight"] = theirs[f"{layer}.{key}.weight"]
        if kind is Qwen3Config:
            for which in "qk":
                state[f"{block}.attn.norm_{which}.weight"] = theirs[f"{layer}.self_attn.{which}_norm.weight"]
    _, again = _check(source, {**LITGPT, **options, "norm_qk": kind is Qwen3Config}, state)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parallel_residual": True}, r"^config.parallel_residual: True is not supported by litgpt; allowed: False$"),
        ({"norm_class_name": "LayerNorm"}, r"^config.norm_class_name: 'LayerNorm' is not supported by litgpt"),
        # Left out, it is what the source takes for it.
        ({"norm_class_name": ...}, r"^config.norm_class_name: 'LayerNorm' is not supported by litgpt"),
        ({"rope_local_base_freq": 100.0}, r"^config.rope_local_base_freq: 100.0 is not supported by litgpt"),
        ({"rope_adjustments": {"factor": 2.0}}, r"^config.rope_adjustments: .* allowed: null, or a dict of factor, "),
        ({"new_option": 1}, r"^config: 'new_option' is not an option of litgpt"),
    ],
)
def test_litgpt_blocks_of_another_kind_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        hf_arch.from_foreign({key: value for key, value in {**LITGPT, **change}.items() if value is not ...}, {})
