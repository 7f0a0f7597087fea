"""What a block leaves out where nothing is to be done, and in a step of one token, changes no number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.suite.models import perturbed_model, token_ids


@torch.no_grad()
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gqa", "moe", "gla", "mamba2", "hybrid"])
def test_a_plain_block_is_the_general_one(name: str, dropout: float) -> None:
    model, ids = perturbed_model(name, residual_dropout=dropout), token_ids(1)
    assert all(layer._adds_alone for layer in model.model.layers)
    model.train(dropout > 0)
    outputs = []
    for plain in (True, False):
        for layer in model.model.layers:
            layer._adds_alone = plain
        torch.manual_seed(1)
        outputs.append(model(ids, use_cache=False).logits)
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    "options",
    [
        {"norm_position": "post"},
        {"norm_position": "sandwich"},
        {"stream": "hyper"},
        {"residual_multiplier": 0.5},
        {"sites": [{"type": "canon", "at": ["ffn_input"]}]},
    ],
)
def test_any_other_block_takes_the_general_way(options: dict) -> None:
    assert not any(layer._adds_alone for layer in perturbed_model("llama", **options).model.layers)


@torch.no_grad()
@pytest.mark.parametrize("high_cycles", [1, 2])
def test_what_flows_beside_the_hidden_states_is_kept(high_cycles: int) -> None:
    depth = {"type": "cycles", "low": 1, "low_cycles": 2, "high_cycles": high_cycles}
    model, ids = perturbed_model("llama", depth=depth), token_ids(1)
    outputs = []
    for plain in (True, False):
        for layer in model.model.layers:
            assert layer._adds_alone or not plain
            layer._adds_alone = plain
        outputs.append(model(ids, use_cache=False).logits)
    assert torch.equal(*outputs)


@torch.no_grad()
def test_a_hook_on_the_stream_is_called() -> None:
    model, ids, calls = perturbed_model("llama"), token_ids(1), []
    model.model.layers[0].stream.register_forward_hook(lambda *given: calls.append(given[1][0]))
    model(ids)
    assert calls == ["enter", "read", "write", "read", "write", "leave"]


@torch.no_grad()
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_queries_and_keys_turned_together_are_those_turned_apart(qk_norm: bool, share: float) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}
    model, ids = perturbed_model("llama", num_key_value_heads=2, qk_norm=qk_norm, rope_parameters=rope), token_ids(3)
    mixers: list[nn.Module] = [layer.mixer for layer in model.model.layers]
    assert all(mixer._turns_together for mixer in mixers)
    steps = []
    for together in (True, False):
        for mixer in mixers:
            mixer._turns_together = together
        cache = model(ids[:, :-2], use_cache=True).past_key_values
        steps.append([model(step, past_key_values=cache).logits for step in ids[:, -2:].split(1, 1)])
    assert all(torch.equal(*pair) for pair in zip(*steps, strict=True))
