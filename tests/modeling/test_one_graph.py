"""A forward without a cache is one graph for torch.compile: no step of it parses the config again."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch


@pytest.mark.rest
@pytest.mark.parametrize("name", ["llama", "gla"])
def test_a_forward_is_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")  # a graph has no kernels of ours, which round otherwise
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name)).eval()
    ids = torch.arange(3, 19)[None]
    torch.compiler.reset()  # each code is compiled for so many models a process, whichever tests came before
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
