"""Smear (nanochat): each token's embedding gets a gated share of the one before it in its document.

    x_t <- x_t + m sigmoid(w . x_t[:24]) x_{t-1}

m starts at 0 and w at U(0, 0.02). With `embedding_norm` it acts on the normed embeddings, as in nanochat.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.options import Options, options
from ...core.registry import EMBEDDINGS
from ...ops.conv import token_shift
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..cost import MixerCost
from .base import Embedding

GATE_CHANNELS = 24


@options
class SmearOptions(Options):
    """No options."""


@EMBEDDINGS.register("smear")
class Smear(Embedding):
    """A gated share of the previous token's embedding."""

    Options = SmearOptions
    label = "Smear"
    keeps_state: ClassVar[bool] = True
    reads_ids: ClassVar[bool] = False
    no_weight_decay = ("amount",)

    def __init__(self, config: Any, options: SmearOptions, slot: int):
        super().__init__(config, options, slot)
        self.channels = min(GATE_CHANNELS, config.hidden_size)
        self.gate = nn.Parameter(torch.empty(1, self.channels))
        self.amount = nn.Parameter(torch.empty(1))

    def init_weights(self) -> None:
        init.uniform_(self.gate, 0.0, 0.02)
        init.zeros_(self.amount)

    def forward(self, x: Tensor, ids: Tensor | None, context: LayerContext) -> Tensor:
        layout, state = context.layout, context.state(0)
        ordered = layout.compact(x)
        before, last = token_shift(
            ordered,
            initial_state=state.recurrent(self.slot),
            segment_ids=layout.segment_ids,
            output_final_state=bool(state),
            num_valid=layout.num_valid,
        )
        state.write_recurrent(last, self.slot)
        gate = torch.sigmoid(ordered[..., : self.channels] @ self.gate.t().to(x.dtype))
        return x + layout.restore(self.amount.to(x.dtype) * gate * before)

    def cost(self, seq_len: int) -> MixerCost:
        flops = 2 * self.channels
        return MixerCost(flops * seq_len, flops, self.config.hidden_size * cache_element_bytes(self.config))
