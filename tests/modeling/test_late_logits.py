"""Logits beside the chunked loss: computed when read, equal to the whole's, refused when they would be others."""

from __future__ import annotations

import pickle
from operator import getitem

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.models.late_logits import LateLogits


def _pair(name: str, **overrides):
    """The same model with the loss in chunks and in one piece, and a batch."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name, **overrides)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids = torch.randint(1, model.config.vocab_size, (2, 9))
    return model, ids


def _call(model, ids, chunk, **more):
    model.config.loss_chunk_size = chunk
    return model(ids, labels=ids, use_cache=False, **more)


def by_index(output, key):
    return output[list(output.keys()).index(key)]


@pytest.mark.parametrize("name", ["gpt2", "moe", "gla"])
@pytest.mark.parametrize("read", [getattr, getitem, by_index])
def test_they_are_those_of_the_whole(name, read):
    model, ids = _pair(name)
    whole, chunked = _call(model, ids, 0), _call(model, ids, 4)
    assert isinstance(vars(chunked)["logits"], LateLogits)
    torch.testing.assert_close(read(chunked, "logits"), whole.logits)
    assert list(chunked.keys()) == list(whole.keys())


def test_a_loss_of_ones_own_trains_the_same():
    model, ids = _pair("llama", final_logit_softcapping=5.0)
    gradients = []
    for chunk in (0, 4):
        model.zero_grad()
        out = _call(model, ids, chunk)
        F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=0.1).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_read_without_a_graph_and_then_with_one():
    model, ids = _pair("llama")
    out = _call(model, ids, 4)
    with torch.no_grad():
        assert not out.logits.requires_grad
    assert out.logits.requires_grad and out.logits is out.logits


def test_some_positions_and_tuples():
    model, ids = _pair("llama")
    assert _call(model, ids, 4, logits_to_keep=3).logits.shape[1] == 3
    torch.testing.assert_close(_call(model, ids, 4, return_dict=False)[1], _call(model, ids, 0).logits)


def test_mixed_precision_as_accelerate_wraps_it():
    model, ids = _pair("llama")

    def forward(chunk):
        with torch.autocast("cpu", torch.bfloat16):
            return _call(model, ids, chunk)

    whole, chunked = (convert_outputs_to_fp32(forward)(chunk) for chunk in (0, 4))
    torch.testing.assert_close(chunked.logits.float(), whole.logits, rtol=0, atol=0)  # one product in bf16


def test_after_a_step_they_are_refused():
    model, ids = _pair("llama")
    out = _call(model, ids, 4)
    out.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="loss_chunk_size = 0"):
        _ = out.logits


def test_pickling_needs_them():
    model, ids = _pair("llama")
    out = _call(model, ids, 4)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(out)
