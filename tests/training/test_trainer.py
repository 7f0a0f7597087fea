"""What ArchTrainer adds to Trainer: the order of the data, the decay groups, the exact validation loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, TrainingArguments, default_data_collator

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.data import PreparedData, prepare_data
from hf_arch.evaluation.perplexity import TextLoss, sum_nats
from hf_arch.optimizers.choose import choose_optimizer
from hf_arch.recipe.build import build_config
from hf_arch.recipe.recipe import Recipe
from hf_arch.training.arguments import build_arguments, check_model
from hf_arch.training.precision import Precision
from hf_arch.training.trainer import ArchTrainer, decay_parameter_names
from tests.training.tiny import recipe_values

FP32 = Precision("fp32", "a test")


def make_trainer(text: Path, folder: Path, start_step: int = 0, **training: Any) -> tuple[ArchTrainer, PreparedData]:
    recipe = Recipe.from_dict(recipe_values(text, training=training))
    data = prepare_data(recipe.data)
    torch.manual_seed(0)
    trainer = ArchTrainer(
        model=AutoModelForCausalLM.from_config(build_config(recipe, data.tokenizer)),
        args=build_arguments(recipe.training, FP32, folder, len(data.train)),
        order=data.order(3),
        train_dataset=data.train,
        eval_dataset=data.validation,
        start_step=start_step,
        builder=choose_optimizer(recipe.training),
        data_collator=default_data_collator,
    )
    return trainer, data


def rows_given(trainer: ArchTrainer) -> list[list[list[int]]]:
    return [batch["input_ids"].tolist() for batch in trainer.get_train_dataloader()]


def test_each_step_gets_the_rows_of_the_order(text: Path, tmp_path: Path) -> None:
    trainer, data = make_trainer(text, tmp_path)
    expected = [
        [data.train[row]["input_ids"].tolist() for row in data.order(3).indices(step, global_batch_size=4)]
        for step in range(6)
    ]
    assert rows_given(trainer) == expected


def test_a_resumed_run_seeks_to_its_step(text: Path, tmp_path: Path) -> None:
    whole, _ = make_trainer(text, tmp_path)
    resumed, _ = make_trainer(text, tmp_path, start_step=4)
    assert rows_given(resumed) == rows_given(whole)[4:]


def test_accumulation_gives_the_losses_of_the_whole_batch(text: Path, tmp_path: Path) -> None:
    curves = []
    for batch, accumulation in ((8, 1), (1, 8)):
        trainer, _ = make_trainer(
            text,
            tmp_path / str(batch),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            save_strategy="no",
        )
        trainer.train()
        curves.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert len(curves[0]) == 6
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_epochs_become_steps(text: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(recipe_values(text))
    training = {key: value for key, value in recipe.training.items() if key != "max_steps"}
    args = build_arguments({**training, "num_train_epochs": 2.5, "eval_strategy": "epoch"}, FP32, tmp_path, num_rows=40)
    assert (args.max_steps, args.eval_steps) == (25, 10)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("chunk", [0, 5])
def test_the_loss_is_the_formula_over_shifted_labels(
    text: Path, tmp_path: Path, smoothing: float, accumulation: int, chunk: int
) -> None:
    """(1 - e) nll + e mean over the vocabulary, as the log of the first step has it, whatever computes it."""
    trainer, data = make_trainer(
        text,
        tmp_path,
        label_smoothing_factor=smoothing,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        save_strategy="no",
        eval_strategy="no",
    )
    trainer.model.config.loss_chunk_size = chunk
    rows = [data.train[row] for row in data.order(3).indices(0, global_batch_size=4 * accumulation)]
    batch = default_data_collator(rows)
    with torch.no_grad():
        logits = trainer.model(batch["input_ids"]).logits.flatten(0, 1)
        expected = F.cross_entropy(logits, batch["shift_labels"].flatten(), label_smoothing=smoothing)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [0, 5])
@pytest.mark.parametrize("isolated", [False, True])
def test_every_learned_position_is_trained(
    text: Path, tmp_path: Path, smoothing: float, chunk: int, isolated: bool
) -> None:
    """A row of T tokens has T targets: the last learned position moves as the others do, and is scored."""
    values = recipe_values(text, model={"architecture": "gpt2"}, training={"label_smoothing_factor": smoothing})
    values["data"]["isolate_documents"] = isolated
    recipe = Recipe.from_dict(values)
    data = prepare_data(recipe.data)
    model = AutoModelForCausalLM.from_config(build_config(recipe, data.tokenizer))
    model.config.loss_chunk_size = chunk
    trainer = ArchTrainer(
        model=model,
        args=build_arguments({**recipe.training, "max_steps": 1}, FP32, tmp_path, len(data.train)),
        order=data.order(3),
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=default_data_collator,
    )
    rows = [data.train[row] for row in data.order(3).indices(0, global_batch_size=4)]
    length = recipe.data.sequence_length
    items = torch.tensor(4 * length)
    trainer.compute_loss(model.train(), default_data_collator(rows), num_items_in_batch=items).backward()
    moved = model.model.position.embedding.weight.grad.abs().sum(-1)
    assert moved.shape[0] >= length and (moved[:length] > 0).all()
    counted = trainer.score(data.validation, 2).tokens
    assert counted == sum(int((data.validation[row]["shift_labels"] != -100).sum()) for row in range(2))
    assert isolated or counted == 2 * length


def cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


# Rate over its peak after so many of 20 steps, the first 4 of which warm up.
SCHEDULES: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "cosine": ({}, {4: 1.0, 8: cosine(0.25), 12: 0.5, 20: 0.0}),
    "cosine_with_min_lr": ({"min_lr_rate": 0.1}, {4: 1.0, 8: 0.1 + 0.9 * cosine(0.25), 12: 0.55, 20: 0.1}),
    "linear": ({}, {4: 1.0, 8: 0.75, 12: 0.5, 20: 0.0}),
    "warmup_stable_decay": (
        {"num_decay_steps": 8, "decay_type": "linear", "min_lr_ratio": 0.1},
        {4: 1.0, 8: 1.0, 12: 1.0, 16: 0.55, 20: 0.1},
    ),
    "constant": ({}, {4: 1.0, 8: 1.0, 20: 1.0}),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_have_the_curve_of_their_name(text: Path, tmp_path: Path, kind: str) -> None:
    kwargs, expected = SCHEDULES[kind]
    trainer, _ = make_trainer(text, tmp_path, lr_scheduler_type=kind, lr_scheduler_kwargs=kwargs, warmup_steps=4)
    trainer.create_optimizer_and_scheduler(num_training_steps=20)
    rates = []
    for _ in range(21):
        rates.append(trainer.lr_scheduler.get_last_lr()[0] / 0.005)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    floor = kwargs.get("min_lr_ratio", 0.0)  # the decay's floor is where this schedule's warm-up begins
    assert rates[:4] == pytest.approx([floor + (1 - floor) * step / 4 for step in range(4)])
    assert {step: rates[step] for step in expected} == pytest.approx(expected, abs=1e-9)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_smoothing_would_lose_the_balance_of_the_experts() -> None:
    args = TrainingArguments(output_dir="unused", label_smoothing_factor=0.1, use_cpu=True)
    check_model(hf_arch.tiny_config("llama"), args)
    with pytest.raises(ConfigError, match=r"label_smoothing_factor.*nearest: 0"):
        check_model(hf_arch.tiny_config("moe"), args)


# Parameters with two or more dimensions that decay beside the weights of linear maps, embeddings and convolutions: the
# maps that are written as bare tensors. What is not listed is a decay, a gate, a bonus or a step size, and must not.
BARE_MATRICES = {
    "linformer": {"key_slots", "value_slots", "model.shared.0.weight"},
    "moe": {"router.weight", "experts.gate_up_proj", "experts.up_proj", "experts.down_proj"},
    "griffin": {"input_gate.weight", "recurrence_gate.weight"},
    "rwkv6": {"shift_up"},
    "ssm": {"C"},
}


@pytest.mark.parametrize("name", hf_arch.list_architectures())
def test_matrices_decay_and_gates_biases_and_norms_do_not(name: str) -> None:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name))
    maps = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d)
    weights = {f"{prefix}.weight" for prefix, module in model.named_modules() if isinstance(module, maps)}
    weights &= dict(model.named_parameters()).keys()  # tied ones have one name
    decayed = set(decay_parameter_names(model))
    assert weights <= decayed
    bare = BARE_MATRICES.get(name, set())
    assert {parameter for parameter in decayed - weights if not parameter.endswith(tuple(bare))} == set()


def test_the_decay_groups_reach_the_optimiser(text: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(text, tmp_path, weight_decay=0.3)
    groups = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decayed = {names[id(parameter)] for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
    assert decayed == set(decay_parameter_names(trainer.model))


def test_the_validation_loss_weighs_tokens_not_batches() -> None:
    """Rows with few counted labels must not weigh as much as full ones."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("llama")).eval()
    ids = torch.randint(0, 97, (3, 16))
    labels = ids.clone()
    labels[0, 3:] = -100
    batches = [{"input_ids": ids[:1], "labels": labels[:1]}, {"input_ids": ids[1:], "labels": labels[1:]}]
    nats, tokens = sum_nats(model, batches, torch.device("cpu"))
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].double()
    expected = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    assert tokens == 2 + 15 + 15
    assert nats == pytest.approx(expected.item(), rel=1e-6)


def test_scoring_takes_the_first_rows_whatever_the_batch(text: Path, tmp_path: Path) -> None:
    scores = []
    for batch in (3, 5):
        trainer, data = make_trainer(text, tmp_path, per_device_eval_batch_size=batch)
        scores.append(trainer.score(data.validation, 7))
    assert scores[0].tokens == scores[1].tokens == 7 * 32
    assert scores[0].nats == pytest.approx(scores[1].nats, rel=1e-6)


def test_perplexity_and_bits_per_byte() -> None:
    scored = TextLoss(nats=20 * math.log(8), tokens=20, bytes_per_token=2.0)
    assert scored.perplexity == pytest.approx(8)
    assert scored.bits_per_byte == pytest.approx(3 / 2)
    assert TextLoss(nats=1e6, tokens=1, bytes_per_token=1.0).perplexity == math.inf
