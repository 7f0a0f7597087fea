"""Each architecture learns: a tiny one falls under 60 % of its initial loss on Shakespeare's characters within a
minute."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.data import DataOptions, prepare_data
from tests.suite.models import ARCHITECTURES


@pytest.fixture(scope="module")
def text():
    try:
        options = DataOptions(corpus="shakespeare", tokenizer="char", sequence_length=64)
        return prepare_data(options, progress=False)
    except ConfigError as error:
        pytest.skip(f"the corpus cannot be loaded here: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_learns_shakespeare(name, text):
    torch.manual_seed(0)
    config = hf_arch.tiny_config(name, vocab_size=len(text.tokenizer), hidden_size=64, intermediate_size=128)
    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    order, first, losses, start = text.order(seed=0), None, [], time.process_time()
    for step in range(400):
        ids = torch.stack([text.train[index]["input_ids"] for index in order.indices(step, 16)])
        loss = model(ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        first = losses[0]
        recent = sum(losses[-10:]) / len(losses[-10:])
        if recent < 0.6 * first:
            return
        assert time.process_time() - start < 60, f"{name}: {first:.2f} -> {recent:.2f} after {step + 1} steps"
    pytest.fail(f"{name}: {first:.2f} -> {recent:.2f} in 400 steps")
