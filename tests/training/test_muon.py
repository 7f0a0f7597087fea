"""Muon with AdamW: who gets what, one schedule for both, exact resumption, and that it learns."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.optimizers.choose import choose_optimizer
from hf_arch.optimizers.parameters import matrix_names
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.training.run import run_training
from hf_arch.training.trainer import decay_parameter_names
from tests.training.test_trainer import make_trainer
from tests.training.tiny import recipe_values

pytestmark = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="muon needs torch 2.9; the run says so (hf_arch/optimizers/muon.py)"
)


@pytest.mark.parametrize("name", hf_arch.list_architectures())
def test_muon_gets_the_matrices_of_the_blocks(name: str) -> None:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name))
    parameters = dict(model.named_parameters())
    chosen = set(matrix_names(model))
    assert chosen and chosen <= set(decay_parameter_names(model))
    assert all(parameters[entry].ndim == 2 and ".layers." in entry for entry in chosen)
    assert not any(
        part in entry for entry in chosen for part in ("embed", "lm_head", "norm", "dt_proj", "A_log", "router")
    )
    linear = {f"{prefix}.weight" for prefix, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {entry.split(".")[-2] for entry in linear - chosen} <= {"lm_head", "dt_proj"}


def make_muon_trainer(text: Path, folder: Path, **training: Any) -> Any:
    trainer, _ = make_trainer(text, folder, optim="muon", **training)
    trainer.create_optimizer_and_scheduler(num_training_steps=6)
    return trainer


def test_one_schedule_drives_both_parts_and_every_parameter_is_in_one(text: Path, tmp_path: Path) -> None:
    trainer = make_muon_trainer(text, tmp_path, weight_decay=0.3)
    groups = trainer.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3, 0.0]
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(given) == sorted(id(parameter) for parameter in trainer.model.parameters())
    rates = []
    for _ in range(6):
        rates.append({group["lr"] for group in groups})
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert all(len(rate) == 1 for rate in rates) and len(set.union(*rates)) >= 5


def test_a_matrix_steps_orthogonally_and_a_vector_as_under_adamw(text: Path, tmp_path: Path) -> None:
    """The step of a matrix has singular values near lr 0.2 sqrt(max(rows, columns)); that of a vector is Adam's."""
    trainer = make_muon_trainer(text, tmp_path, weight_decay=0.0, warmup_steps=0, lr_scheduler_type="constant")
    torch.manual_seed(0)
    before = {}
    for name, parameter in trainer.model.named_parameters():
        before[name] = parameter.detach().clone()
        parameter.grad = torch.randn_like(parameter)
        if parameter.ndim == 2:  # singular values from 0.3 to 1
            u, values, v = torch.linalg.svd(parameter.grad, full_matrices=False)
            parameter.grad = u @ torch.diag(torch.linspace(0.3, 1.0, len(values))) @ v
    trainer.optimizer.step()
    for name, parameter in trainer.model.named_parameters():
        step = (parameter.detach() - before[name]) / 0.005
        if name in matrix_names(trainer.model):
            values = torch.linalg.svdvals(step) / (0.2 * max(step.shape) ** 0.5)
            assert values.min() > 0.6 and values.max() < 1.3, name  # the iteration stops at about 0.7 to 1.2
        else:
            torch.testing.assert_close(step, -parameter.grad.sign(), rtol=0, atol=1e-3)


@pytest.mark.rest
def test_a_resumed_run_is_equal_and_the_loss_falls(text: Path, tmp_path: Path) -> None:
    """State of both parts is saved and loaded: the same losses bit for bit."""
    quick = {"speed": False, "new_tokens": 1}

    def losses(folder: Path, resume: bool, **training: Any) -> dict[int, float]:
        values = recipe_values(text, training={"optim": "muon", "learning_rate": 0.02, **training}, evaluation=quick)
        run_training(Recipe.from_dict(values), folder, resume=resume, quiet=True)
        return {row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row}

    whole = losses(tmp_path / "whole", False)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "results.json").unlink()
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "checkpoint-6")
    assert losses(tmp_path / "part", True) == whole
    assert whole[6] < whole[1] - 0.1


def test_options_of_muon_are_checked() -> None:
    def muon_options(given: Any) -> Any:
        return choose_optimizer({"optim": "muon", "optim_args": given}).options

    for same in ("momentum=0.9, ns_steps=6", {"momentum": 0.9, "ns_steps": 6}):
        assert muon_options(same).momentum == 0.9 and muon_options(same).ns_steps == 6
    assert muon_options(None).adjust_lr_fn == "match_rms_adamw"
    for given, expected in (
        ("momentun=0.9", "unknown key 'momentun'; nearest: 'momentum'"),
        ("ns_steps=many", "ns_steps: 'many' is not allowed; expected int"),
        ("adjust_lr_fn=match_rms", "adjust_lr_fn: 'match_rms' is not allowed; expected one of 'match_rms_adamw'"),
        ("nesterov=yes", "nesterov"),
    ):
        with pytest.raises(ConfigError) as caught:
            muon_options(given)
        assert expected in str(caught.value)


def test_an_unknown_optimiser_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"training\.optim: 'moun' is not known; nearest: 'muon'"):
        Recipe.from_dict({"model": {"architecture": "llama"}, "training": {"optim": "moun"}})
