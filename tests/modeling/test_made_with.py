"""What is set on a model's config after the model was made is followed, or refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import hf_arch
from hf_arch.models.made_with import COPIED, FOLLOWED
from tests.suite.models import close, perturbed_model, token_ids

EDITS: dict[str, Any] = {
    "norm_eps": 0.01,
    "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "num_hidden_layers": 1,
    "hidden_act": "relu",
    "attn_logit_softcapping": 1.0,
    "residual_dropout": 0.5,
    "position": "none",
    "mixer": "gla",
}


@torch.no_grad()
@pytest.mark.parametrize("field", EDITS)
def test_an_edit_that_a_model_does_not_follow_is_refused(field: str, tmp_path: Path) -> None:
    model, ids = perturbed_model("llama"), token_ids()
    as_it_was, expected = getattr(model.config, field), model(ids).logits
    setattr(model.config, field, EDITS[field])
    line = rf"^config\.{field}: .* was set after the model was made with .*, and it does not follow; set it back"
    for call in (lambda: model(ids), lambda: model.save_pretrained(tmp_path / "m")):
        with pytest.raises(ValueError, match=line) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()
    setattr(model.config, field, as_it_was)
    assert torch.equal(model(ids).logits, expected)


@torch.no_grad()
def test_an_edit_in_place_is_refused_before_it_is_saved(tmp_path: Path) -> None:
    model = perturbed_model("llama")
    model.config.rope_parameters["factor"] = 4.0
    with pytest.raises(ValueError, match=r"config\.rope_parameters"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


FOLLOWED_EDITS: dict[str, Any] = {
    "final_logit_softcapping": 0.5,
    "logits_scaling": 2.0,
    "embedding_multiplier": 3.0,
    "loss_chunk_size": 4,
    "pad_token_id": 5,
    "use_cache": False,
}


@torch.no_grad()
@pytest.mark.parametrize("field", FOLLOWED_EDITS)
@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_an_edit_that_a_model_follows_is_saved_with_it(name: str, field: str, tmp_path: Path) -> None:
    model, ids = perturbed_model(name), token_ids()
    setattr(model.config, field, FOLLOWED_EDITS[field])
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    close(AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits, expected, 1e-6)


@torch.no_grad()
def test_the_weight_of_the_balance_loss_may_be_set(tmp_path: Path) -> None:
    model, ids = perturbed_model("moe", ffn={"type": "moe", "num_experts": 4}), token_ids()
    model.config.router_aux_loss_coef = 0.5
    model(ids)
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.router_aux_loss_coef == 0.5


@torch.no_grad()
@pytest.mark.parametrize("head", [AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_copies_are_made_with_the_same(head: Any, tmp_path: Path) -> None:
    model, ids = head.from_config(hf_arch.tiny_config("mixed", pad_token_id=0)).eval(), token_ids()
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        each(ids)
        each.config = copy.deepcopy(each.config)
        each(ids)
        each.save_pretrained(tmp_path)
        each.config.norm_eps = 0.5
        with pytest.raises(ValueError, match=r"config\.norm_eps"):
            each.save_pretrained(tmp_path)


def test_every_field_is_followed_or_copied() -> None:
    assert {"mixer", "ffn", "norm_eps", "sliding_window", "num_hidden_layers"} <= set(COPIED)
    assert not set(COPIED) & FOLLOWED and all(hasattr(hf_arch.tiny_config("llama"), name) for name in FOLLOWED)
