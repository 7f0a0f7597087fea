"""Gradients of whole layers against finite differences, in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_arch.layers.contract import LayerContext
from tests.mixers.layers import build

LAYERS = {"abc": 1, "based": 0, "gsa": 1, "hgrn": 1, "hgrn2": 1, "linear_attn": 1, "rwkv6": 1, "ssm": 1}


@pytest.mark.parametrize("architecture", LAYERS)
def test_layer(architecture: str) -> None:
    """Of the input, the layer's parameters, and the lower bounds that the layers share."""
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = build(architecture, **sizes).double().model
    mixer = model.layers[LAYERS[architecture]].mixer
    x = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    context: dict[str, Any] = {}
    if architecture == "abc":
        context["position_embeddings"] = model.rotary_embs[0](x.detach(), torch.arange(5)[None])
    names, parameters = zip(*mixer.named_parameters(), strict=True)
    shared = [parameter for bounds in model.shared for parameter in bounds.parameters()]

    def layer(x: Tensor, *values: Tensor) -> Tensor:
        if shared:
            bounds = torch.func.functional_call(model.shared[0], {"logits": values[-1]})
            context["shared"] = bounds[LAYERS[architecture]]
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=False)), (x, LayerContext(**context)))

    assert torch.autograd.gradcheck(layer, (x, *parameters, *shared), fast_mode=True)
