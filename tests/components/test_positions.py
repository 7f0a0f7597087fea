"""Positions: what happens at the end of the learned ones."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch


@torch.no_grad()
def test_a_row_longer_than_the_learned_positions_is_told() -> None:
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("gpt2", max_position_embeddings=8)).eval()
    assert model(torch.full((1, 8), 5)).logits.shape[1] == 8
    with pytest.raises(IndexError, match="position 8: the model has learned positions 0 to 7"):
        model(torch.full((1, 9), 5))
    with pytest.raises(IndexError, match="position 8"):
        model.generate(torch.full((1, 5), 5), max_new_tokens=6, eos_token_id=None)
