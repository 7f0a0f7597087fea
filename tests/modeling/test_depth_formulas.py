"""Exits and cycles equal their formulas: written out, and transformers' own model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import HrmTextConfig, HrmTextForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.models.losses.exits import exit_log_chances
from tests.modeling.test_part_formulas import layers_of
from tests.modeling.test_streams import IDS, model_of

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "head_dim": 8,
    "prefix_lm": False,
}


@pytest.mark.parametrize("chunk", [0, 7])
def test_the_loss_with_exits_is_its_formula(chunk: int):
    """The whole loss is the expected one less the entropy; what is logged as the next token's is the last pass's."""
    depth = {"type": "loop", "times": 3, "norm": "final"}
    losses = {"type": "exits", "entropy": 0.3}
    model = model_of("add", depth=depth, losses=losses, loss_chunk_size=chunk).train()
    labels = IDS.clone()
    labels[0, 3:6] = -100
    out = model(IDS, labels=labels)
    x, states = model.model.embed_tokens(IDS), []
    for _ in range(3):
        x = model.model.norm(layers_of(model, x))
        states.append(x)
    gates = torch.stack([torch.sigmoid(state @ model.losses[0].gate.weight[0]) for state in states[:-1]])
    chances = torch.stack([gates[0], (1 - gates[0]) * gates[1], (1 - gates[0]) * (1 - gates[1])])[:, :, :-1]
    each = torch.stack(
        [F.cross_entropy(model.lm_head(h)[:, :-1].mT, labels[:, 1:], reduction="none") for h in states]
    )  # fmt: skip
    kept = labels[:, 1:] != -100
    expected = ((chances * each).sum(0) + 0.3 * (chances * chances.log()).sum(0))[kept].mean()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.loss - model.auxiliary_losses["exits"], each[-1][kept].mean())
    torch.testing.assert_close(model.eval()(IDS, labels=labels).loss, each[-1][kept].mean())


def test_chances_of_exits_add_up_to_one_far_out():
    chances = exit_log_chances(torch.tensor([[-200.0, 200.0, 0.0], [200.0, 3.0, -200.0]]))
    assert chances.isfinite().all()
    torch.testing.assert_close(chances.exp().sum(0), torch.ones(3))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"H_cycles": 3, "L_cycles": 2, "L_bp_cycles": [1, 2], "num_hidden_layers": 2},
        {"L_bp_cycles": [9, 9], "prefix_lm": True},
    ],
    ids=str,
)
def test_cycles_are_those_of_transformers(changes: dict[str, Any]):
    """Logits, loss and gradients, which go through the last low cycles alone; and back, bit-equal."""
    config = HrmTextConfig(**{**SMALL, **changes})
    torch.manual_seed(0)
    source = HrmTextForCausalLM(config).train()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model = hf_arch.from_foreign(config.to_dict(), source.state_dict()).train()
    theirs, ours = source(IDS, labels=IDS), model(IDS, labels=IDS)
    torch.testing.assert_close(model.eval()(IDS).logits, source.eval()(IDS).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss)
    theirs.loss.backward()
    ours.loss.backward()
    values, state = hf_arch.to_foreign(model, "hrm_text")
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in state.items())
    assert values["num_hidden_layers"] == config.num_hidden_layers and values["prefix_lm"] is config.prefix_lm
    types = (torch.arange(IDS.shape[1]) < 7).long().expand_as(IDS)
    if config.prefix_lm:
        told = {"token_type_ids": types, "use_cache": False}
        torch.testing.assert_close(model(IDS, **told).logits, source(IDS, **told).logits, rtol=0, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="token_type_ids: only zeros are allowed"):
            model(IDS, token_type_ids=types)
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    _, grads = hf_arch.to_foreign(model, "hrm_text")
    for name, parameter in source.named_parameters():
        if parameter.requires_grad:
            scale = parameter.grad.abs().max()
            torch.testing.assert_close(grads[name], parameter.grad, rtol=0, atol=float(1e-4 * scale))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "config.attention_bias: True is not supported by hrm_text"),
        ({"L_bp_cycles": [0]}, r"trained: \[0\] is not allowed"),
    ],
)
def test_what_cycles_cannot_say_is_refused(changes: dict[str, Any], message: str):
    config = HrmTextConfig(**{**SMALL, **changes})
    with pytest.raises(ConfigError, match=message):
        hf_arch.from_foreign(config.to_dict(), {})
