"""TRL's trainers over models given by their path: they start, their loss is a number, and weights move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from .conftest import make_model

COMMON: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "bf16": False,
    "gradient_checkpointing": False,
}
TEXT = Dataset.from_dict({"text": [f"some text to train on, number {i}, " * (1 + i % 3) for i in range(16)]})
PAIRS = Dataset.from_dict(
    {"prompt": ["say it: "] * 8, "chosen": [f"yes {i}" for i in range(8)], "rejected": [f"no {i}" for i in range(8)]}
)


def train(trainer: Any) -> dict[str, float]:
    """The first log of a training that changed every trainable matrix of the blocks, or nearly."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = [
        name for name, p in trainer.model.named_parameters() if name in before and not torch.equal(before[name], p)
    ]
    assert len(moved) > len(before) // 2
    log = next(row for row in trainer.state.log_history if "loss" in row)
    assert torch.tensor(float(log["loss"])).isfinite()
    return log


@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
def test_sft(name: str, models: dict[str, Path], tmp_path: Path, packing: bool) -> None:
    more = {"packing": True, "padding_free": False} if packing else {}
    args = SFTConfig(str(tmp_path), max_length=48, **COMMON, **more)
    tokenizer = AutoTokenizer.from_pretrained(models[name])
    train(SFTTrainer(str(models[name]), args=args, train_dataset=TEXT, processing_class=tokenizer))


def test_dpo(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    """The reference model is loaded by its path, too; before the first step both agree, and the loss is log 2."""
    args = DPOConfig(str(tmp_path), max_length=48, **COMMON)
    tokenizer = AutoTokenizer.from_pretrained(models[name])
    dpo = DPOTrainer(str(models[name]), args=args, train_dataset=PAIRS, processing_class=tokenizer)
    balance = 0.0 if name != "moe" else 1.0  # the weight of the balance loss is added
    assert abs(float(train(dpo)["loss"]) - 0.6931) < 1e-3 + balance


def test_reward(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    args = RewardConfig(str(tmp_path), max_length=48, **COMMON)
    tokenizer = AutoTokenizer.from_pretrained(models[name])
    train(RewardTrainer(str(models[name]), args=args, train_dataset=PAIRS, processing_class=tokenizer))


def test_grpo(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    rewards = iter(range(10_000))
    args = GRPOConfig(str(tmp_path), num_generations=4, max_completion_length=6, beta=0.1, **COMMON)
    trainer = GRPOTrainer(
        str(models[name]),
        reward_funcs=lambda completions, **_: [float(next(rewards) % 7) for _ in completions],
        args=args,
        train_dataset=PAIRS.select_columns(["prompt"]),
        processing_class=AutoTokenizer.from_pretrained(models[name]),
    )
    train(trainer)


@pytest.mark.parametrize("trainer", ["KTO", "RLOO"])
def test_kto_and_rloo(trainer: str, models: dict[str, Path], tmp_path: Path) -> None:
    import trl

    name, kinds = "gated_delta_net", vars(trl)
    kinds = {kind: getattr(trl, f"{trainer}{kind}") for kind in ("Config", "Trainer")}
    tokenizer = AutoTokenizer.from_pretrained(models[name])
    if trainer == "KTO":
        rows = {"prompt": ["say: "] * 8, "completion": [f"yes {i}" for i in range(8)], "label": [True, False] * 4}
        args = kinds["Config"](str(tmp_path), max_length=48, **COMMON)
        made = kinds["Trainer"](
            str(models[name]), args=args, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer
        )
    else:
        rewards = iter(range(10_000))
        args = kinds["Config"](str(tmp_path), num_generations=2, max_completion_length=6, **COMMON)
        made = kinds["Trainer"](
            str(models[name]),
            reward_funcs=lambda completions, **_: [float(next(rewards) % 7) for _ in completions],
            args=args,
            train_dataset=PAIRS.select_columns(["prompt"]),
            processing_class=tokenizer,
        )
    train(made)


def test_the_weight_of_the_balance_loss_is_honoured(tmp_path: Path) -> None:
    """As the model has it by default, and as SFT's own argument says."""
    losses = []
    for own, asked in ((0.0, None), (100.0, None), (0.0, 100.0)):
        model = make_model("moe", ffn={"type": "moe", "num_experts": 4, "aux_loss_coef": own})
        args = SFTConfig(str(tmp_path), max_length=48, router_aux_loss_coef=asked, **{**COMMON, "max_steps": 1})
        losses.append(float(train(SFTTrainer(model, args=args, train_dataset=TEXT, processing_class=byte()))["loss"]))
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)
    assert 150 < losses[1] - losses[0] < 400  # k = 2 where the load is even, at most E = 4


def test_layers_with_different_experts_train_without_a_common_balance_loss(tmp_path: Path) -> None:
    """One number of experts is what TRL computes it from: it is told that there is none, and asked for it, refused."""
    from hf_arch.api import tiny_config

    tokenizer = byte()
    config = tiny_config("moe", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    for asked in (None, 0.5):
        args = SFTConfig(str(tmp_path), max_length=48, router_aux_loss_coef=asked, **COMMON)
        model = AutoModelForCausalLM.from_config(config)
        trainer = SFTTrainer(model, args=args, train_dataset=TEXT, processing_class=tokenizer)
        if asked is None:
            train(trainer)
        else:
            with pytest.raises(AttributeError, match="num_experts: layers differ"):
                trainer.train()


@pytest.mark.parametrize("sampled", [0.0, 1.0], ids=["given", "sampled"])
def test_distillation(name: str, tmp_path: Path, sampled: float) -> None:
    """A student that is its teacher has nothing to learn, on given answers and on its own; another one has."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    tokenizer = byte()
    messages = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tokenizer.chat_template = messages + "{% if add_generation_prompt %}assistant: {% endif %}"
    said = [(f"say {i}", f"yes {i} " * (1 + i % 3)) for i in range(8)]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in said]
    rows = Dataset.from_dict({"messages": turns})
    losses = []
    for spread in (0.02, 0.5):
        args = GKDConfig(str(tmp_path), max_length=64, max_new_tokens=6, lmbda=sampled, **COMMON)
        teacher = make_model(name, initializer_range=spread)
        trainer = GKDTrainer(
            make_model(name, initializer_range=0.02),
            teacher_model=teacher,
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
        )
        trainer.train()
        losses.append(float(next(row["loss"] for row in trainer.state.log_history if "loss" in row)))
    assert abs(losses[0]) < 1e-7 < 1e-4 < losses[1]


def byte() -> Any:
    from .conftest import byte_tokenizer

    return byte_tokenizer()


def test_create_model_from_path(name: str, models: dict[str, Path]) -> None:
    from trl.trainer.utils import create_model_from_path

    assert type(create_model_from_path(str(models[name]))) is type(AutoModelForCausalLM.from_pretrained(models[name]))
