"""Adapters of PEFT, quantised weights of torchao and quanto, and TRL's losses take part wherever a layer is used."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.models.late_logits import LateLogits

pytestmark = pytest.mark.ecosystem
NAMES = hf_arch.list_architectures()
LOSS_CHUNK = 4


@pytest.fixture(params=NAMES, scope="module")
def name(request):
    return request.param


def _model(name, **overrides):
    torch.manual_seed(0)
    config = hf_arch.tiny_config(name, tie_word_embeddings=False, loss_chunk_size=LOSS_CHUNK, **overrides)
    for spec in config.ffn if isinstance(config.ffn, list) else [config.ffn]:
        if spec["type"] == "moe":  # training's loss is that of evaluation without what balances experts
            spec["aux_loss_coef"] = spec["z_loss_coef"] = 0.0
    model = AutoModelForCausalLM.from_config(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config.attention_dropout = 0.0
    return model


def _ids(rows=2, length=11):
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("use_dora", [False, True])
def test_lora_on_every_linear_and_the_head(name, use_dora):
    """Training's chunked loss, evaluation, cached steps and the merged model all give the same."""
    peft = pytest.importorskip("peft")
    model = _model(name)
    linear = [key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    wanted = peft.LoraConfig(target_modules=linear, task_type="CAUSAL_LM", init_lora_weights=False, use_dora=use_dora)
    adapted = peft.get_peft_model(model, wanted).train()
    ids = _ids()
    out = adapted(input_ids=ids, labels=ids)
    assert isinstance(vars(out)["logits"], LateLogits)
    out.loss.backward()
    without = [key for key, p in adapted.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert any("lm_head" in key for key, p in adapted.named_parameters() if p.requires_grad)
    with torch.no_grad():
        evaluated = adapted.eval()(input_ids=ids, labels=ids)
        torch.testing.assert_close(out.loss, evaluated.loss, rtol=0, atol=1e-4)
        step = adapted(input_ids=ids[:, :7], use_cache=True)
        for place in range(7, 11):
            step = adapted(input_ids=ids[:, place : place + 1], past_key_values=step.past_key_values, use_cache=True)
            torch.testing.assert_close(step.logits[:, 0], evaluated.logits[:, place], rtol=0, atol=1e-3)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, evaluated.logits, rtol=0, atol=1e-3)


def test_a_torchao_model_writes_what_it_computes(name):
    quantization = pytest.importorskip("torchao.quantization")
    model = _model(name).eval()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    _steps_are_the_whole(model)


def test_a_quanto_model_writes_what_it_computes(name):
    quanto = pytest.importorskip("optimum.quanto")
    model = _model(name).eval()
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    _steps_are_the_whole(model)


@torch.no_grad()
def _steps_are_the_whole(model):
    ids = _ids()
    whole = model(ids).logits
    out = model(ids[:, :7], use_cache=True)
    for place in range(7, 11):
        out = model(ids[:, place : place + 1], past_key_values=out.past_key_values, use_cache=True)
        torch.testing.assert_close(out.logits[:, 0], whole[:, place], rtol=0, atol=2e-3)
