"""One decoder block: a token mixer and a channel mixer with their norms and residual connections.

pre:       x + mixer(norm(x)),        then x + ffn(norm(x))            (GPT-2, Llama)
post:      norm(x + mixer(x)),        then norm(x + ffn(x))            (Vaswani et al. 2017)
sandwich:  x + norm(mixer(norm(x))),  then x + norm(ffn(norm(x)))      (Ding et al. 2021; Gemma 2)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..core.registry import NORMS
from ..layers.contract import EMPTY_CONTEXT, LayerContext, LayerOutput
from ..layers.ffns.ffn import NoFeedForward
from .configuration import ArchConfig


class DecoderLayer(GradientCheckpointingLayer):
    """A block: hidden states [B, T, D] and what it needs of earlier layers by position (gradient checkpointing sees no
    other tensors), the context by keyword."""

    def __init__(self, config: ArchConfig, layer_idx: int):
        super().__init__()
        mixer_class, mixer_options = config.mixer_specs[layer_idx]
        ffn_class, ffn_options = config.ffn_specs[layer_idx]
        self.needs = mixer_class.needs(config, mixer_options, layer_idx)
        self.publishes = mixer_class.publishes(config, mixer_options, layer_idx)
        self.norm_position = config.norm_position
        self.mixer = mixer_class(config, mixer_options, layer_idx)
        self.mixer_norm = _norm(config)
        self.mixer_post_norm = _norm(config) if config.norm_position == "sandwich" else None
        self.ffn = None if ffn_class is NoFeedForward else ffn_class(config, ffn_options, layer_idx)
        has_ffn = self.ffn is not None
        self.ffn_norm = _norm(config) if has_ffn else None
        self.ffn_post_norm = _norm(config) if has_ffn and config.norm_position == "sandwich" else None
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self, hidden_states: Tensor, shared: Any = None, *needed: Tensor, context: LayerContext = EMPTY_CONTEXT
    ) -> Any:
        """Args:
            hidden_states: [B, T, D]. shared: this layer's entry of shared parameters, or None.
            needed: the values of `self.needs`, in that order.

        Returns:
            [B, T, D], or (hidden states, router logits or None, the values of `self.publishes` in that order).
        """
        own = replace(context, shared=shared, values=dict(zip(self.needs, needed, strict=True)))
        mixed = self._branch(self.mixer, self.mixer_norm, hidden_states, own)
        hidden_states = self._join(hidden_states, mixed.hidden_states, self.mixer_norm, self.mixer_post_norm)
        router_logits = None
        if self.ffn is not None:
            fed = self._branch(self.ffn, self.ffn_norm, hidden_states, context)
            router_logits = fed.router_logits
            hidden_states = self._join(hidden_states, fed.hidden_states, self.ffn_norm, self.ffn_post_norm)
        if router_logits is None and not self.publishes:
            return hidden_states
        return (hidden_states, router_logits, *(mixed.published[name] for name in self.publishes))

    def _branch(
        self, module: nn.Module, norm: nn.Module | None, hidden_states: Tensor, context: LayerContext
    ) -> LayerOutput:
        if self.norm_position != "post" and norm is not None:
            hidden_states = norm(hidden_states)
        return LayerOutput.of(module(hidden_states, context=context))

    def _join(self, residual: Tensor, out: Tensor, norm: nn.Module | None, post_norm: nn.Module | None) -> Tensor:
        if post_norm is not None:
            out = post_norm(out)
        total = residual + self.dropout(out)
        return norm(total) if self.norm_position == "post" and norm is not None else total


def _norm(config: ArchConfig) -> nn.Module:
    return NORMS.get(config.norm, "norm")(config.hidden_size, config.norm_eps)
