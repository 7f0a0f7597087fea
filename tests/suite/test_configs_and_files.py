"""Configs, files and initialisation of every registered architecture."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import hf_arch
from tests.suite.models import ARCHITECTURES, perturbed_model, token_ids

pytestmark = pytest.mark.parametrize("name", ARCHITECTURES)


def test_config_round_trips_unchanged(name, tmp_path):
    config = hf_arch.tiny_config(name)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is type(config)
    assert {**again.to_dict(), "_name_or_path": ""} == config.to_dict()
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


@torch.no_grad()
def test_saved_and_loaded_is_bit_equal(name, tmp_path):
    model, ids = perturbed_model(name), token_ids()
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert torch.equal(loaded(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


@pytest.mark.sampled(10)
@torch.no_grad()
def test_tied_and_untied_heads_survive_a_file(name, tmp_path):
    for tied in (True, False):
        model = perturbed_model(name, tie_word_embeddings=tied)
        model.save_pretrained(tmp_path / str(tied))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(tied))
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_meta_device_then_load(name):
    """A model made on the meta device and then given the weights computes the same: no buffer depended on its
    creation."""
    model, ids = perturbed_model(name), token_ids()
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name))
    empty = empty.to_empty(device="cpu").eval()
    empty.load_state_dict(model.state_dict())
    empty.init_non_persistent_buffers() if hasattr(empty, "init_non_persistent_buffers") else None
    empty.model.rotary_embs = model.model.rotary_embs  # transformers' loading re-makes these from the config
    with torch.no_grad():
        assert torch.equal(empty(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


@pytest.mark.sampled(10)
def test_heads(name):
    config, ids = hf_arch.tiny_config(name, num_labels=3), token_ids()
    assert AutoModel.from_config(config)(ids).last_hidden_state.shape == (2, 21, config.hidden_size)
    assert AutoModelForSequenceClassification.from_config(config)(ids, labels=torch.tensor([0, 2])).logits.shape == (
        2,
        3,
    )
    assert AutoModelForTokenClassification.from_config(config)(ids, labels=ids % 3).logits.shape == (2, 21, 3)
    spans = {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}
    assert AutoModelForQuestionAnswering.from_config(config)(ids, **spans).loss.isfinite()


def test_initial_loss_is_that_of_guessing(name):
    """A fresh model is close to uniform over the vocabulary: log 97 = 4.57."""
    torch.manual_seed(0)
    model, ids = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name)).eval(), token_ids(4, 30)
    assert abs(model(ids, labels=ids).loss.item() - 4.575) < 0.25


@pytest.mark.sampled(10)
def test_weights_are_initialised_once_and_finite(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    torch.manual_seed(0)
    again = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name))
    for (key, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), key


@pytest.mark.slow
def test_loads_in_a_new_process_after_importing_the_package(name, tmp_path):
    perturbed_model(name).save_pretrained(tmp_path)
    code = (
        "import hf_arch; from transformers import AutoModelForCausalLM; "
        f"print(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).config.model_type)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == f"hfa_{name}"
