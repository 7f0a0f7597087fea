"""Parts whose methods run inside a call of the module: hooks see every call, parameters are used inside one."""

from __future__ import annotations

import pytest
import torch

import hf_arch
from hf_arch import checks
from tests.suite.models import token_ids


def record_calls(part: torch.nn.Module) -> list[str]:
    """The methods by which it is called from now on."""
    called: list[str] = []
    part.register_forward_pre_hook(lambda module, given: called.append(given[0]))
    return called


@pytest.mark.parametrize("stream", ["add", "scaled"])
def test_hooks_see_every_method(stream: str) -> None:
    model = checks.perturbed_model(hf_arch.tiny_config("llama", stream={"type": stream}))
    wanted = model(token_ids(1, 9)).logits
    layer, whole, depth = (
        record_calls(part) for part in (model.model.layers[0].stream, model.model.stream, model.model.depth)
    )
    assert torch.equal(model(token_ids(1, 9)).logits, wanted)
    assert layer == ["enter", "read", "write", "read", "write", "leave"]
    assert whole == ["start", "finish"]
    assert depth == ["start", *["between"] * model.config.num_hidden_layers]


def test_a_replaced_forward_is_used() -> None:
    part = checks.perturbed_model(hf_arch.tiny_config("llama")).model.layers[0].stream
    part.forward = lambda method, *args: f"replaced {method}"
    assert part.run("enter", ()) == "replaced enter"
