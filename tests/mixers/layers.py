"""Layers for the tests of mixers: a mixer with random parameters, and the text of its formulas as small functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.layers.contract import LayerContext, LayerOutput


def build(architecture: str, **overrides: Any) -> Any:
    """A tiny model whose parameters are all moved away from their initial values."""
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config(architecture, **overrides)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def mixer_and_input(architecture: str, length: int = 11, layer: int = 0, **overrides: Any) -> tuple[Any, Tensor]:
    """(mixer of one layer with random parameters, hidden states [2, length, D])."""
    model = build(architecture, **overrides)
    generator = torch.Generator().manual_seed(2)
    return model.model.layers[layer].mixer, torch.randn(2, length, model.config.hidden_size, generator=generator)


def weights(module: Any) -> dict[str, Tensor]:
    """The module's parameters by name, detached, in fp64: references are exact to fp32."""
    return {name: parameter.detach().double() for name, parameter in module.named_parameters()}


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Depthwise convolution over the last W tokens: x [B, T, C], weight [C, 1, W]."""
    padded = F.pad(x.mT, (weight.shape[-1] - 1, 0))
    return F.conv1d(padded, weight, bias, groups=weight.shape[0]).mT


def heads(x: Tensor, size: int) -> Tensor:
    """[B, T, H size] -> [B, T, H, size]."""
    return x.unflatten(-1, (-1, size))


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / torch.sqrt(x.square().sum(-1, keepdim=True) + eps)


def assert_layer(mixer: Any, x: Tensor, expected: Tensor, tolerance: float = 1e-5, **context: Any) -> None:
    """The layer's output equals `expected` within `tolerance` of its largest entry."""
    with torch.no_grad():
        actual = LayerOutput.of(mixer(x, context=LayerContext(**context))).hidden_states
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < tolerance, f"relative error {error:.2e}"
