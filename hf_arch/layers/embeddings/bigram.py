"""Hashed bigrams (modded-nanogpt, 2026): a row of one table for each pair of neighbouring tokens, added before layers.

    h_t = ((36313 id_t) xor (27191 id_{t-1})) mod (M - 1) in int32,   h = M - 1 at the first token of a document
    x <- x + b_l s_t E[h_t]      before layer l

E [M, D] starts at 0, M is `table_multiple` vocabularies, b_l starts at 0.05, and s_t, a vector of signs, is one of 8192
random ones, chosen by id_t xor id_{t-1}: pairs that collide in h differ in s. Where the original hashes a document's
first token with the last one of the document before, the row M - 1 is taken.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import EMBEDDINGS
from ..contract import LayerContext
from ..cost import MixerCost
from ..sites.base import Spot, chosen_layers
from .base import Embedding, EmbeddingOutput, EmbeddingSite, recent_ids

SIGN_ROWS = 8192


@options
class BigramOptions(Options):
    """`table_multiple`: rows of the table in vocabularies. `layers`: before which it is added, None = all. `signs`:
    whether rows are multiplied by random signs."""

    table_multiple: float | int = 7.5
    layers: list[int] | None = None
    signs: bool = True


class BigramSite(EmbeddingSite):
    """x + b row."""

    no_weight_decay = ("amount",)

    def __init__(self, config: Any, options: tuple[Any, int], spot: Spot):
        super().__init__(config, options, spot)
        self.amount = nn.Parameter(torch.empty(1))

    def init_weights(self) -> None:
        init.constant_(self.amount, 0.05)

    def forward(self, x: Tensor, *, source: Tensor, context: LayerContext) -> Tensor:
        return x + self.amount.to(x.dtype) * self.value(context).to(x.dtype)


@EMBEDDINGS.register("bigram")
class BigramEmbedding(Embedding):
    """A hashed table of token pairs, added to the stream before layers."""

    Options = BigramOptions
    Layer = BigramSite
    label = "Bigram"
    keeps_state: ClassVar[bool] = True

    def __init__(self, config: Any, options: BigramOptions, slot: int):
        super().__init__(config, options, slot)
        self.table = nn.Embedding(self.rows(config, options), config.hidden_size)

    @classmethod
    def rows(cls, config: Any, options: BigramOptions) -> int:
        """M."""
        return int(options.table_multiple * config.vocab_size)

    @classmethod
    def layers(cls, config: Any, options: BigramOptions) -> tuple[int, ...]:
        return chosen_layers("embeddings bigram layers", options.layers, config)

    @classmethod
    def validate(cls, config: Any, options: BigramOptions) -> None:
        if not (0 < options.table_multiple < float("inf") and cls.rows(config, options) >= 2):
            raise ConfigError(
                f"embeddings bigram table_multiple: {options.table_multiple} is not allowed; use a number above 0 that "
                "makes at least two rows"
            )
        cls.layers(config, options)

    def init_weights(self) -> None:
        init.zeros_(self.table.weight)

    def forward(self, x: Tensor, ids: Tensor | None, context: LayerContext) -> EmbeddingOutput:
        assert ids is not None
        recent = recent_ids(ids, 1, context, self.slot)
        own, before = recent[..., 0].int(), recent[..., 1].int()
        last = self.rows(self.config, self.options) - 1
        hashed = torch.bitwise_xor(own * 36313, before * 27191).remainder(last)
        row = self.table(torch.where(before < 0, last, hashed).long())
        if self.options.signs:
            row = row * pair_signs(torch.bitwise_xor(own, before.clamp(min=0)) % SIGN_ROWS, row.shape[-1]).to(row.dtype)
        return EmbeddingOutput(x, dict.fromkeys(self.layers(self.config, self.options), row))

    def cost(self, seq_len: int) -> MixerCost:
        return MixerCost(state_bytes=8)


def pair_signs(numbers: Tensor, width: int) -> Tensor:
    """[..., width] of -1 and 1, a function of `numbers` [...] that looks random: the parity of a multiplied hash."""
    channels = torch.arange(width, device=numbers.device, dtype=torch.int64)
    mixed = (numbers.long().unsqueeze(-1) * 0x9E3779B1 + channels * 0x85EBCA77 + 0x165667B1) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 12)) * 0x297A2D39) & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 15)) & 1).float() * 2 - 1
