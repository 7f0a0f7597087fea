"""What people hand to `from_foreign` by mistake is one line, and what training wrappers add to names is no mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Mamba2Config, MixtralConfig, Qwen3Config

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import build

LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
IDS = torch.arange(2 * 13).view(2, 13) % 61


def _random(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def llama() -> tuple[dict[str, Any], dict[str, torch.Tensor], torch.Tensor]:
    config = LlamaConfig(**LLAMA)
    model = _random(config)
    with torch.no_grad():
        return config.to_dict(), model.state_dict(), model(IDS).logits


@pytest.mark.parametrize(
    "wrapped", ["_orig_mod.{}", "module.{}", "module._orig_mod.{}", "_fsdp_wrapped_module.{}"], ids=str
)
@torch.no_grad()
def test_prefixes_of_wrappers_are_dropped(llama: Any, wrapped: str) -> None:
    config, state, logits = llama
    model = hf_arch.from_foreign(config, {wrapped.format(key): tensor for key, tensor in state.items()})
    torch.testing.assert_close(model(IDS).logits, logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_compiled_blocks_and_half_precision_are_read(llama: Any) -> None:
    config, state, _ = llama
    halved = {key: tensor.to(torch.bfloat16) for key, tensor in state.items()}
    halved["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # a buffer that files of 2023 hold
    model = hf_arch.from_foreign(config, {key.replace(".mlp.", ".mlp._orig_mod."): t for key, t in halved.items()})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.model.norm.weight, halved["model.norm.weight"].float())


@torch.no_grad()
def test_the_base_model_of_a_tied_checkpoint_is_enough() -> None:
    """As in the file of the published GPT-2."""
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    source = _random(config)
    model = hf_arch.from_foreign(config.to_dict(), source.transformer.state_dict())
    torch.testing.assert_close(model(IDS).logits, source(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "config: no 'hidden_size'"),
        ({"hidden_size": "32"}, r"config\.hidden_size: '32' is not allowed; use an integer >= 1"),
        ({"num_key_value_heads": 0}, r"config\.num_key_value_heads: 0 is not allowed; use an integer >= 1"),
        ({"rope_theta": -1.0}, r"config\.rope_theta: -1\.0 is not allowed; use a number > 0"),
        ({"rope_parameters": "yarn"}, r"config\.rope_parameters: 'yarn' is not allowed; use a dict"),
        ({"rms_norm_eps": float("nan")}, "norm_eps: nan is not allowed; use a number of at least 0"),
        ({"tie_word_embeddings": True}, "state_dict: 'lm_head.weight' is not the embeddings' weight"),
    ],
    ids=str,
)
def test_values_of_the_wrong_kind(llama: Any, change: dict[str, Any], message: str) -> None:
    config, state, _ = llama
    with pytest.raises(ConfigError, match=message):
        hf_arch.from_foreign({**config, **change}, state)


@pytest.mark.parametrize("kinds", [True, ["full_attention"], ["full_attention", "chunked_attention"]], ids=str)
def test_layer_types_that_are_none(kinds: Any) -> None:
    with pytest.raises(ConfigError, match=r"config\.layer_types: .* for each of 2 layers"):
        hf_arch.from_foreign({**Qwen3Config(**LLAMA).to_dict(), "layer_types": kinds}, {})


def test_what_is_no_dict_of_tensors(llama: Any) -> None:
    config, state, _ = llama
    with pytest.raises(ConfigError, match=r"^config: LlamaConfig is not a dict; give its to_dict\(\)$"):
        hf_arch.from_foreign(LlamaConfig(**LLAMA), state)
    with pytest.raises(ConfigError, match=r"^state_dict: Linear is not a dict; give its state_dict\(\)$"):
        hf_arch.from_foreign(config, nn.Linear(1, 1))
    with pytest.raises(
        ConfigError, match="state_dict: 'model' is of type OrderedDict; give the dict of tensors itself"
    ):
        hf_arch.from_foreign(config, {"model": state})


@pytest.mark.parametrize("attn", [True, {"layers": [0]}, {"layers": [7], "num_heads": 2}, [{"num_heads": 2}]], ids=str)
def test_hybrids_that_are_none(attn: Any) -> None:
    config, state = hf_arch.to_foreign(build("gla"), "gla")
    with pytest.raises(ConfigError, match=r"config\.attn"):
        hf_arch.from_foreign({**config, "attn": attn}, state)


def test_a_fused_tensor_of_another_shape() -> None:
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    state = _random(config).state_dict()
    key = "transformer.h.0.attn.c_attn.weight"
    with pytest.raises(ConfigError, match=rf"state_dict: {key} \[32, 95\] does not fit the config"):
        hf_arch.from_foreign(config.to_dict(), {**state, key: state[key][:, 1:]})


@torch.no_grad()
def test_partial_rotation_is_not_llamas() -> None:
    """transformers' Llama reads no such factor."""
    config = LlamaConfig(**LLAMA, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5})
    source = _random(config)
    model = hf_arch.from_foreign(config.to_dict(), source.state_dict())
    torch.testing.assert_close(model(IDS).logits, source(IDS).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_norm_before_gate_is_not_transformers_mamba2s() -> None:
    """Its published configs have the key, its model does not read it."""
    config = Mamba2Config(vocab_size=61, hidden_size=32, num_hidden_layers=1, state_size=4, head_dim=8, num_heads=8)
    source = _random(config)
    values = {**config.to_dict(), "norm_before_gate": True, "rms_norm": True}
    model = hf_arch.from_foreign(values, source.state_dict())
    torch.testing.assert_close(model(IDS).logits, source(IDS).logits, rtol=0, atol=1e-5)


def test_router_logits_bring_their_loss_with_them() -> None:
    config = MixtralConfig(
        **LLAMA, num_key_value_heads=4, num_local_experts=4, router_aux_loss_coef=0.5, output_router_logits=True
    )
    source = _random(config)
    model = hf_arch.from_foreign(config.to_dict(), source.state_dict())
    ours, theirs = model(IDS, labels=IDS).loss, source(IDS, labels=IDS).loss
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours - model(IDS, labels=IDS, output_router_logits=False).loss) > 0.5
