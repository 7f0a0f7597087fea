"""torch.compile takes each block whole: a graph break would cost a return to Python in every layer."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "gla"])
def test_a_block_compiles_to_one_graph(name: str) -> None:
    """`fullgraph` raises at a break; the backend is eager, because how a graph is found does not depend on it."""
    torch._dynamo.reset()
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name)).train()
    ids = torch.randint(3, 90, (2, 24))
    expected = model(ids, labels=ids, use_cache=False).loss
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, fullgraph=True, backend="eager")
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
