"""What transformers splits over devices: an entry that names nothing leaves a module whole in silence."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch
from tests.suite.models import ARCHITECTURES


def generic(name: str) -> str:
    """A name as transformers looks it up: every number between dots is `*`."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_entry_of_a_plan_names_a_module(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name))
    base = {generic(module) for module, _ in model.model.named_modules()}
    base |= {generic(parameter) for parameter, _ in model.model.named_parameters()}
    for plan in (model.config.base_model_tp_plan, model.config.base_model_ep_plan):
        assert set(plan or ()) <= base


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ({"sites": [{"type": "canon", "at": ["qkv"]}]}, "mixer"),
        ({"sites": [{"type": "canon", "at": ["ffn_hidden"], "layers": [1]}]}, "ffn"),
        ({"embeddings": [{"type": "value"}]}, "mixer"),
        ({"mixer": [{"type": "attention", "sinks": True}, "attention"]}, "mixer"),
    ],
)
def test_what_one_layer_cannot_split_stays_whole_in_all(given: dict[str, object], whole: str) -> None:
    plan = hf_arch.tiny_config("llama", **given).base_model_tp_plan
    assert plan and whole not in {name.split(".")[2] for name in plan}


def test_stages_of_a_pipeline_are_refused_by_what_transformers_passes_them() -> None:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("llama"))
    with pytest.raises(ValueError, match=r"pipeline parallelism .* is not supported; take tp_size or fsdp_size"):
        model(torch.tensor([[1, 2]]), kwargs={})


def test_no_parameter_of_a_part_is_a_scalar_which_fsdp2_cannot_shard() -> None:
    embeddings = ["bigram", "smear", "ngram", "injected_ngram", {"type": "value", "mix": "scalar"}]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("llama", embeddings=embeddings))
    assert not [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
