"""What weight decay leaves alone is the same for ArchTrainer, transformers' Trainer and the parameters' marks."""

from __future__ import annotations

import copy

import pytest
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import hf_arch
from hf_arch.models.weight_decay import exempt_parameter_names, teach_trainer
from hf_arch.training.trainer import decay_parameter_names
from tests.suite.models import ARCHITECTURES


def decayed_by_trainer(model: nn.Module, folder: str) -> set[str]:
    arguments = TrainingArguments(folder, report_to="none", use_cpu=True, weight_decay=0.1)
    return set(Trainer(model, arguments).get_decay_parameter_names(model))


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_everyone_exempts_the_same(name: str, tmp_path) -> None:
    made = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name))
    made.save_pretrained(tmp_path)
    for model in (made, AutoModelForCausalLM.from_pretrained(tmp_path)):
        ours = set(decay_parameter_names(model))
        assert decayed_by_trainer(model, str(tmp_path)) - {"lm_head.weight"} == ours - {"lm_head.weight"}
        marked = {name for name, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)}
        assert marked == {name for name, _ in model.named_parameters()} - ours == exempt_parameter_names(model)


def test_dynamics_are_exempt_in_a_model_within_another_one(tmp_path) -> None:
    inner = AutoModelForCausalLM.from_config(hf_arch.tiny_config("mamba"))
    outer = nn.ModuleDict({"student": inner, "extra": nn.Linear(4, 4)})
    decayed = decayed_by_trainer(outer, str(tmp_path))
    assert "extra.weight" in decayed and "student.model.layers.0.mixer.in_proj.weight" in decayed
    assert not [name for name in decayed if name.endswith(("A_log", ".D"))]
    assert not [
        name for name in decayed_by_trainer(copy.deepcopy(inner), str(tmp_path)) if name.endswith(("A_log", ".D"))
    ]


def test_other_models_are_decayed_as_before(tmp_path) -> None:
    AutoModelForCausalLM.from_config(hf_arch.tiny_config("mamba"))
    taught = Trainer.get_decay_parameter_names
    teach_trainer()
    assert Trainer.get_decay_parameter_names is taught  # once
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    trainer = Trainer(model, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    assert trainer.get_decay_parameter_names(model) == taught.__wrapped__(trainer, model)  # type: ignore[attr-defined]
