"""Fields that other libraries look for on a config: there where a layer has them, right, and never ignored when set."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.models.common_names import READABLE
from tests.suite.models import ARCHITECTURES, token_ids

MOE = {"type": "moe", "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16, "aux_loss_coef": 0.5}
LATENT = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")


def test_a_mixture_of_experts_says_its_sizes() -> None:
    config = hf_arch.tiny_config("moe", ffn=dict(MOE))
    assert (config.num_experts, config.num_local_experts, config.num_experts_per_tok) == (4, 4, 2)
    assert config.router_aux_loss_coef == 0.5 and config.output_router_logits is False
    assert hf_arch.tiny_config("llama", ffn=dict(MOE)).output_router_logits is False
    with pytest.raises(AttributeError, match=r"num_experts: layers differ \(\['4', '8'\]\)"):
        _ = hf_arch.tiny_config("moe").num_experts


def test_latent_attention_says_its_sizes() -> None:
    config = hf_arch.tiny_config("mla")
    options = config.mixer_specs[0][1]
    assert {name: getattr(config, name) for name in LATENT} == {name: getattr(options, name) for name in LATENT}
    pattern = hf_arch.tiny_config("mla", mixer=["attention", {**config.mixer}])
    assert pattern.kv_lora_rank == options.kv_lora_rank


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_no_layer_has_is_not_there_and_nothing_is_saved(name: str) -> None:
    config = hf_arch.tiny_config(name)
    saved = config.to_dict()
    assert not {*READABLE, "auto_map"} & set(saved)
    assert config.auto_map == {}
    assert all(hasattr(config, field) == (name == "mla") for field in LATENT)
    assert hasattr(config, "output_router_logits") == (name == "moe")
    assert not hasattr(config, "router_aux_loss_coef")  # the tiny one's layers have different numbers of experts
    assert set(config.base_model_pp_plan) == {"embed_tokens", "layers", "norm"}
    assert type(config)(**saved).to_dict() == saved


def test_the_weight_of_the_balance_loss_acts_on_a_model_that_is_built(tmp_path) -> None:
    model = AutoModelForCausalLM.from_config(
        hf_arch.tiny_config("moe", ffn=[dict(MOE), {**MOE, "num_experts": 6}])
    ).train()
    ids = token_ids(2, 9)
    before = model(ids, labels=ids)
    model.config.router_aux_loss_coef = 1000.0
    after = model(ids, labels=ids)
    torch.testing.assert_close(after.loss - before.loss, 999.5 * before.aux_loss, rtol=1e-5, atol=1e-3)
    model.save_pretrained(tmp_path)
    assert [spec["aux_loss_coef"] for spec in AutoConfig.from_pretrained(tmp_path).ffn] == [1000.0, 1000.0]
    model.config.router_aux_loss_coef = 0.0
    plain = model.eval()(ids, labels=ids).loss
    torch.testing.assert_close(model.train()(ids, labels=ids).loss, plain)


def test_sizes_cannot_be_set_on_a_finished_config(tmp_path) -> None:
    config = hf_arch.tiny_config("moe", ffn=dict(MOE))
    config.num_experts_per_tok = 2  # as it is
    with pytest.raises(ConfigError, match="num_experts_per_tok: 1 cannot be set on a finished config"):
        config.num_experts_per_tok = 1
    for value in (-1.0, float("nan"), "0.1", True):
        with pytest.raises(ConfigError, match=r"router_aux_loss_coef: .* is not allowed"):
            config.router_aux_loss_coef = value
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, router_aux_loss_coef=0.25).router_aux_loss_coef == 0.25
    with pytest.raises(ConfigError, match="num_local_experts"):
        AutoConfig.from_pretrained(tmp_path, num_local_experts=2)


def test_the_names_others_use_are_taken_when_a_config_is_made() -> None:
    config = AutoConfig.for_model("hfa_moe", num_local_experts=6, router_aux_loss_coef=0.125)
    assert config.ffn["num_experts"] == 6 and config.ffn["aux_loss_coef"] == 0.125
    with pytest.raises(ConfigError, match="num_local_experts: 6 contradicts num_experts 4"):
        AutoConfig.for_model("hfa_moe", num_local_experts=6, num_experts=4)
