"""Experts that are balanced by a bias, under any Trainer: one move an optimiser step."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import hf_arch
from hf_arch.training.expert_balance import ExpertBalance


def test_each_optimiser_step_moves_the_bias_once(tmp_path):
    ffn = {"type": "moe", "num_experts": 6, "intermediate_size": 8, "score_bias": True, "bias_update_rate": 0.25}
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("moe", ffn=ffn))
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 97, (12, 9))]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[ExpertBalance()]).train()
    for layer in model.model.layers:
        moves = layer.ffn.router.score_bias / 0.25
        assert torch.equal(moves, moves.round()) and 0 < moves.abs().max() <= 3
        assert layer.ffn.load is None
