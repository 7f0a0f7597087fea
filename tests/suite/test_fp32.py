"""Decays, step sizes, rotary frequencies and routing biases stay fp32 under every way of building, casting and
loading a model, with the values that they had."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, Trainer, TrainingArguments

import hf_arch
from hf_arch.evaluation.loading import load_causal_lm
from hf_arch.layers.fp32 import Fp32BiasLinear, kept_in_fp32
from hf_arch.layers.positions import ArchRotaryEmbedding

from .models import ARCHITECTURES, perturbed_model, token_ids

# Told here once more, by the ends of their names, so that a module which forgets to list one is noticed.
DYNAMICS = (
    *("inv_freq", "A_log", "dt_bias", "dt_proj.bias", "score_bias", "log_dt", "log_A_real", "A_imag"),
    *("decay_up.bias", "decay.2.bias", "gk_proj.1.bias", "shared.0.logits", "mixer.D"),
    *("mixer.decay", "A_log_atk", "dt_bias_atk", "log_atk_scale"),
)
LOW = (torch.bfloat16, torch.float16)


@pytest.fixture(params=ARCHITECTURES, scope="module")
def name(request):
    return request.param


def dynamics(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {key: value for key, value in tensors.items() if key.endswith(DYNAMICS)}


def assert_kept(model, original, values=True, low=LOW):
    expected, actual = dynamics(original), dynamics(model)
    assert actual.keys() == expected.keys()
    for key, tensor in actual.items():
        assert tensor.dtype == torch.float32, key
        assert not values or torch.equal(tensor, expected[key]), key
    assert model.model.embed_tokens.weight.dtype in low
    assert model.dtype in low


def test_the_one_list_names_them_all(name):
    model = perturbed_model(name)
    assert dynamics(model).keys() <= kept_in_fp32(model).keys()


@pytest.mark.sampled(10)
@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.half().bfloat16(),
        lambda model: [module.to(torch.bfloat16) for module in model.children()] and model,
        # Torch's other words for these.
        pytest.param(lambda model: model.to("cpu", torch.float16), marks=pytest.mark.slow),
        pytest.param(lambda model: model.bfloat16(), marks=pytest.mark.slow),
        pytest.param(lambda model: model.half(), marks=pytest.mark.slow),
        pytest.param(
            lambda model: nn.ModuleDict({"inside": model}).to(dtype=torch.bfloat16)["inside"], marks=pytest.mark.slow
        ),
        pytest.param(lambda model: model.double().bfloat16(), marks=pytest.mark.slow),
    ],
)
def test_casts(name, cast):
    original = perturbed_model(name)
    model = cast(copy.deepcopy(original))
    assert_kept(model, original)
    ids = token_ids(2, 7)
    with torch.no_grad():
        whole = model(ids).logits
        model.generate(ids, max_new_tokens=2, do_sample=False)
    assert whole.dtype in LOW and torch.isfinite(whole).all()


def test_wider_casts_are_honoured(name):
    model = perturbed_model(name).double()
    assert all(tensor.dtype == torch.float64 for tensor in dynamics(model).values())
    assert all(tensor.dtype == torch.float32 for tensor in dynamics(model.float()).values())


def test_a_cast_keeps_gradients_with_their_parameters(name):
    model = perturbed_model(name).train()
    model(token_ids(2, 7), labels=token_ids(2, 7)).loss.backward()
    model.bfloat16()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.dtype == parameter.dtype, key


@pytest.mark.sampled(10)
def test_loading_and_saving_again(name, tmp_path):
    original = perturbed_model(name)
    original.save_pretrained(tmp_path / "fp32")
    for dtype in LOW:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fp32", dtype=dtype)
        assert_kept(loaded, original)
        loaded.save_pretrained(tmp_path / "low")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "low")
        assert_kept(again, original)
        ours = load_causal_lm(tmp_path / "low")
        state, expected = ours.state_dict(), loaded.state_dict()
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            assert state[key].dtype == value.dtype and torch.equal(state[key], value), key


@pytest.mark.sampled(10)
def test_every_way_of_building(name, tmp_path):
    config = hf_arch.tiny_config(name)
    original = AutoModelForCausalLM.from_config(config)
    assert_kept(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), original, values=False)
    config.dtype = "bfloat16"
    config.save_pretrained(tmp_path)
    told = AutoConfig.from_pretrained(tmp_path)
    assert_kept(AutoModelForCausalLM.from_config(told), original, values=False)
    head = AutoModelForTokenClassification.from_config(hf_arch.tiny_config(name), dtype=torch.bfloat16)
    assert all(tensor.dtype == torch.float32 for tensor in dynamics(head).values())
    # What is set from a formula is not rounded on its way: the rotary frequencies of both are the same.
    for key, value in dynamics(
        AutoModelForCausalLM.from_config(hf_arch.tiny_config(name), dtype=torch.float16)
    ).items():
        if key.endswith("inv_freq"):
            assert torch.equal(value, dynamics(original)[key])


def test_assigned_state_dicts(name):
    original = perturbed_model(name)
    low = {
        key: value.bfloat16() if value.is_floating_point() else value for key, value in original.state_dict().items()
    }
    model = copy.deepcopy(original)
    model.load_state_dict(low, assign=True)
    assert_kept(model, original, values=False)


@pytest.mark.parametrize("name_", ["mamba2", "llama", "moe"])
def test_a_trainer_that_evaluates_in_bf16(name_, tmp_path):
    original = perturbed_model(name_)
    model = copy.deepcopy(original)
    rows = [{"input_ids": row, "labels": row} for row in token_ids(4, 9)]
    arguments = TrainingArguments(
        str(tmp_path), bf16_full_eval=True, use_cpu=True, report_to="none", disable_tqdm=True, prediction_loss_only=True
    )
    Trainer(model, arguments, eval_dataset=rows).evaluate()
    assert_kept(model, original)


def test_frequencies_that_a_wrapper_rounds_are_made_again():
    """FSDP casts buffers by their `data`, behind every method of the module."""
    original = perturbed_model("llama")
    model = copy.deepcopy(original)
    for buffer in model.buffers():
        buffer.data = buffer.data.bfloat16()
    ids = token_ids(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=0, atol=0)
    rotary = [module for module in model.modules() if isinstance(module, ArchRotaryEmbedding)]
    assert rotary and all(module.inv_freq.dtype == torch.float32 for module in rotary)


def test_a_kept_bias_is_added_in_fp32():
    layer = Fp32BiasLinear(8, 16).bfloat16()
    x = torch.randn(4, 8).bfloat16()
    out = layer(x)
    assert out.dtype == layer.bias.dtype == torch.float32
    assert torch.equal(out, nn.functional.linear(x, layer.weight) + layer.bias)
    layer, x = layer.float(), x.float()
    assert torch.equal(layer(x), nn.Linear.forward(layer, x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32
