"""Hashed n-grams (as in qwen4_exp's text model): rows of hashed tables for the last 2..N tokens are added.

    key_n = xor_{s < n} ( id_{t-s} mu_s ),  n = 2..N, in wrapping int64
    row of head h = key_n mod p_h + offset_h,  p_h consecutive primes from `table_size` on
    x <- x + W concat over n, h of E[row]

mu_s are odd multipliers from splitmix64 of `seed`. Ids before the start of the document, or before the last
end-of-sequence id that lies before t, count as that id.
E has one table with the heads' rows one after the other, `width` numbers a token in all; W starts at 0.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import EMBEDDINGS
from ..contract import LayerContext
from ..cost import MixerCost
from ..streams.base import check_whole
from .base import Embedding, recent_ids
from .hashing import multipliers, ngram_keys, primes_from


@options
class NgramOptions(Options):
    """`order`: N. `heads`: hashes of each order. `width`: of all rows together, None = hidden_size. `table_size`: least
    rows of a head, None = vocab_size. `seed`: of the multipliers."""

    order: int = 3
    heads: int = 2
    width: int | None = None
    table_size: int | None = None
    seed: int = 0


@EMBEDDINGS.register("ngram")
class NgramEmbedding(Embedding):
    """Hashed tables of the last few tokens, added to the token embedding."""

    Options = NgramOptions
    label = "Ngram"
    keeps_state: ClassVar[bool] = True
    field: ClassVar[str] = "ngram"
    """Its name, in errors."""

    def __init__(self, config: Any, options: NgramOptions, slot: int):
        super().__init__(config, options, slot)
        heads = options.heads * (options.order - 1)
        self.sizes = list(islice(primes_from(options.table_size or config.vocab_size), heads))
        self.factors = multipliers(options.seed, 0, options.order, config.vocab_size)
        self.table = nn.Embedding(sum(self.sizes), self.width(config, options) // heads)
        self.proj = nn.Linear(self.width(config, options), config.hidden_size, bias=False)

    @classmethod
    def width(cls, config: Any, options: NgramOptions) -> int:
        """Of all rows of a token together."""
        return options.width or config.hidden_size

    @classmethod
    def validate(cls, config: Any, options: NgramOptions) -> None:
        field = f"embeddings {cls.field}"
        check_whole(f"{field} order", options.order, 2)
        for name in ("heads", "width", "table_size"):
            if getattr(options, name) is not None:
                check_whole(f"{field} {name}", getattr(options, name))
        heads = options.heads * (options.order - 1)
        width = cls.width(config, options)
        if width % heads:
            near = max(1, round(width / heads)) * heads
            raise ConfigError(f"{field} width: {width} is not a multiple of the {heads} heads; nearest valid: {near}")

    def init_weights(self) -> None:
        init.zeros_(self.proj.weight)

    def forward(self, x: Tensor, ids: Tensor | None, context: LayerContext) -> Tensor:
        assert ids is not None
        recent = within_sequence(recent_ids(ids, self.options.order - 1, context, self.slot), self.config)
        rows = hashed_rows(recent, self.factors, self.options.heads, self.sizes)
        return x + self.proj(self.table(rows).flatten(-2))

    def cost(self, seq_len: int) -> MixerCost:
        return MixerCost(state_bytes=8 * (self.options.order - 1))


def hashed_rows(recent: Tensor, factors: list[int], heads: int, sizes: list[int]) -> Tensor:
    """[B, T, heads (N - 1)] rows of a table that holds the heads one after the other.

    Args:
        recent: [B, T, N] ids. factors: N multipliers. sizes: rows of each head.
    """
    keys = ngram_keys(recent, factors)[..., 1:].repeat_interleave(heads, dim=-1)
    rows = torch.tensor(sizes, device=recent.device)
    return keys.remainder(rows) + rows.cumsum(0) - rows


def within_sequence(recent: Tensor, config: Any) -> Tensor:
    """[B, T, N] with the end-of-sequence id for what is of an earlier sequence, or missing."""
    eos = config.eos_token_id
    ends = [0] if eos is None else eos if isinstance(eos, list) else [eos]
    is_end = torch.stack([recent[..., 1:] == end for end in ends]).any(0) | (recent[..., 1:] < 0)
    ended = is_end.cumsum(-1) > 0
    own = recent[..., :1].clamp(min=0)
    return torch.cat([own, torch.where(ended, ends[0], recent[..., 1:])], -1)
