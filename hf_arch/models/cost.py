"""What a model costs, from its config alone: parameters, FLOPs (train, forward, prefill, decode) and cache bytes.

The model is built on the meta device (no memory, no weights): its parameters are then exact, and its Linear layers give
two FLOPs per weight and token. What a mixer computes between its projections is the mixer's own `cost` (a registered
mixer brings it along). Training counts three forward passes: one forward, and two products as large for the gradients
of inputs and of weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..core.errors import ConfigError, choice_error
from ..core.registry import ARCHITECTURES
from ..layers.mixers.base import MixerCost
from .configuration import ArchConfig


@dataclass(frozen=True)
class ModelCost:
    """Costs of one model at one sequence length and batch size; FLOPs are two per multiply-add of matrix products.

    Attributes:
        params_total, params_trainable: all weights, tied ones once.
        params_active: those that a token passes through (fewer than all with experts).
        params_embedding: token and learned position embeddings (a tied head counts here).
        flops_per_token_forward: mean over a sequence of `seq_len` tokens, head included.
        flops_per_token_train: three times that, and that of auxiliary losses; once where gradients do not go.
        prefill_flops: of `batch_size` prompts of `seq_len` tokens, logits of the last token only.
    """

    seq_len: int
    batch_size: int
    params_total: int
    params_trainable: int
    params_active: int
    params_embedding: int
    flops_per_token_forward: float
    flops_per_token_train: float
    prefill_flops: float
    _layers: tuple[Any, ...] = field(repr=False)
    _linear_flops: float = field(repr=False)

    @property
    def linear_flops(self) -> float:
        """FLOPs of one token of one sequence in Linear layers, the head included."""
        return self._linear_flops

    def decode_flops(self, context: int) -> float:
        """FLOPs of one decoding step of `batch_size` sequences that have `context` tokens in their caches."""
        mixing = sum(layer.cost(context).decode_flops * times for layer, times in self._layers)
        return self.batch_size * (self._linear_flops + mixing)

    def state_bytes(self, context: int) -> int:
        """Bytes of the cache of `batch_size` sequences after `context` tokens."""
        return self.batch_size * sum(layer.cost(context).state_bytes * times for layer, times in self._layers)


def model_cost(config: ArchConfig, seq_len: int, batch_size: int = 1) -> ModelCost:
    """The cost of a model with this config.

    Raises:
        ConfigError: `seq_len` or `batch_size` below 1, or a config of no registered architecture.
    """
    for name, value in (("seq_len", seq_len), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name}: {value} is not allowed; use an integer >= 1")
    model = _meta_model(config.model_type, config.to_json_string(use_diff=False))
    layers = _parts(model.model)
    costs: list[MixerCost] = [layer.cost(seq_len) for layer, _ in layers]
    head = 2 * model.lm_head.weight.numel()
    # A layer that runs again has its experts once.
    inactive = sum({id(layer): layer.cost(seq_len).inactive_parameters for layer, _ in layers}.values())
    inactive += sum(parameter.numel() for parameter in model.losses.parameters())
    body = 2 * sum(_linear_weights(layer) * times for layer, times in layers)
    mixing = sum(cost.mixing_flops * times for cost, (_, times) in zip(costs, layers, strict=True))
    forward = (body + head) + mixing / seq_len
    trained = forward + sum(loss.training_flops(seq_len) for loss in model.losses) / seq_len
    untrained = sum(
        2 * _linear_weights(part) + part.cost(seq_len).mixing_flops / seq_len
        for index in model.model.untrained_layers()
        for part in _layer_parts(model.model.layers[index])
    )
    embedding = sum(m.weight.numel() for m in model.model.modules() if isinstance(m, nn.Embedding))
    total = sum(parameter.numel() for parameter in model.parameters())
    return ModelCost(
        seq_len=seq_len,
        batch_size=batch_size,
        params_total=total,
        params_trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        params_active=total - inactive,
        params_embedding=embedding,
        flops_per_token_forward=forward,
        flops_per_token_train=3 * trained - 2 * untrained,
        prefill_flops=batch_size * ((forward - head) * seq_len + head),
        _layers=tuple(layers),
        _linear_flops=body + head,
    )


def _parts(body: Any) -> list[tuple[Any, int]]:
    """(part, how often a token passes through it) of everything between the token embedding and the head."""
    parts = [(part, 1) for part in (body.stream, body.depth, *body.embeddings)]
    for index, layer in enumerate(body.layers):
        times = body.plan.count(index)
        parts += [(part, times) for part in _layer_parts(layer)]
    return parts


def _layer_parts(layer: Any) -> list[Any]:
    """The parts of one block."""
    sites = [site for sites in layer.sites.values() for site in sites]
    return [part for part in (layer.stream, layer.mixer, layer.ffn) if part is not None] + sites


def _linear_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


@lru_cache(maxsize=64)
def _meta_model(model_type: str, config_json: str) -> Any:
    name = model_type.removeprefix("hfa_")
    if name not in ARCHITECTURES or (architecture := ARCHITECTURES[name]).config.model_type != model_type:
        raise choice_error("model", name, ARCHITECTURES, ARCHITECTURES.listing, "not a registered architecture")
    values = json.loads(config_json)
    config = architecture.config(**{key: values[key] for key in values if key not in _NOT_ARGUMENTS})
    with torch.device("meta"):
        return architecture.causal_lm(config)


_NOT_ARGUMENTS = ("model_type", "architectures")
