"""Native sparse attention (Yuan et al. 2025, arXiv 2502.11089): three attentions over the same keys, gated and summed.

    o = g_c o_c + g_s o_s + g_w o_w,   g = sigmoid(W_g x) for each head
    o_c: softmax over the means of keys and values of finished blocks of `block_size` tokens
    o_s: softmax over the tokens of `block_counts` blocks: the first, the own and the one before it, and those which the
         query heads of a KV head together give most weight in o_c (no gradient through the choice)
    o_w: softmax over the last `window` tokens

The form here is dense, with a mask for each attention: exact, and quadratic in the length.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.options import options
from ...core.registry import MIXERS
from ..key_blocks import KeyBlocks, key_blocks, largest
from .attention_heads import AttentionCall, HeadsOptions, config_rotates
from .base import MixerCost
from .stickbreaking import PairwiseAttention


@options
class NativeSparseOptions(HeadsOptions):
    """Sizes in tokens, `block_counts` in blocks (at least the three that are always chosen)."""

    block_size: int = 64
    block_counts: int = 16
    window: int = 512
    rope_theta: float | int | None = None


@MIXERS.register("nsa")
class NativeSparseAttention(PairwiseAttention):
    """See above; all keys and values are cached, and block means made from them."""

    Options = NativeSparseOptions
    label: ClassVar[str] = "NSA"
    config_features: ClassVar[tuple[str, ...]] = ("attention_bias", "qk_norm", "position", "rope_parameters")

    def __init__(self, config: Any, options: NativeSparseOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.g_proj = nn.Linear(config.hidden_size, 3 * self.num_heads, bias=False)

    @classmethod
    def rotates(cls, config: Any, options: NativeSparseOptions) -> bool:
        return config_rotates(config, None)

    @classmethod
    def validate(cls, config: Any, options: NativeSparseOptions) -> None:
        super().validate(config, options)
        for name, least in (("block_size", 1), ("block_counts", 3), ("window", 1)):
            if getattr(options, name) < least:
                raise ConfigError(
                    f"mixer nsa: {name} {getattr(options, name)} is not allowed; use an integer >= {least}"
                )

    def attend(self, call: AttentionCall) -> Tensor:
        query, key, value, hidden_states, context = call.query, call.key, call.value, call.hidden_states, call.context
        keys = self.keys(hidden_states, context)
        blocks = key_blocks(keys, self.options.block_size)
        values = self.per_query_head(value)
        coarse = self.products(query, blocks.means(key).to(query.dtype))
        weights = masked_softmax(coarse, blocks.finished[:, None])
        compressed = weights.to(value.dtype) @ self.per_query_head(blocks.means(value).to(value.dtype))
        scores = self.products(query, key)
        chosen = blocks.spread(self.choose(weights.detach(), blocks)).repeat_interleave(self.num_groups, 1)
        itself = (torch.arange(key.shape[2], device=key.device) == keys.slots[:, None])[None, None]
        selected = masked_softmax(scores, (chosen & keys.visible[:, None]) | itself).to(value.dtype) @ values
        near = keys.queries[:, :, None] - keys.keys[:, None] < self.options.window
        windowed = masked_softmax(scores, (near & keys.visible)[:, None]).to(value.dtype) @ values
        gates = torch.sigmoid(self.g_proj(hidden_states)).unflatten(-1, (self.num_heads, 3)).transpose(1, 2)
        out = gates[..., 0:1] * compressed + gates[..., 1:2] * selected + gates[..., 2:3] * windowed
        return out.transpose(1, 2)

    def choose(self, weights: Tensor, blocks: KeyBlocks) -> Tensor:
        """The blocks of each KV head [B, Hkv, T, N], bool, by the weights [B, H, T, N] of the compressed attention."""
        importance = weights.unflatten(1, (self.num_kv_heads, self.num_groups)).sum(2)
        index = torch.arange(blocks.number, device=weights.device)
        own, first = blocks.own[..., None], blocks.first[..., None]
        forced = ((index == first) | (index == own) | (index == own - 1)) & (index >= first) & (index <= own)
        allowed = (forced | blocks.finished)[:, None]
        importance = importance.masked_fill(forced[:, None], float("inf")).masked_fill(~allowed, float("-inf"))
        best = largest(importance, self.options.block_counts)
        return torch.zeros_like(importance, dtype=torch.bool).scatter(-1, best, True) & allowed

    def cost(self, seq_len: int) -> MixerCost:
        """4 H K FLOPs a pair of a token with a block; a score and two weighted values, 6 H K, a pair of tokens."""
        coarse, fine = 4 * self.num_heads * self.head_dim, 6 * self.num_heads * self.head_dim

        def attended(keys: int) -> int:
            return fine * keys + coarse * -(-keys // self.options.block_size)

        return MixerCost(
            mixing_flops=seq_len * attended(seq_len),
            decode_flops=attended(seq_len + 1),
            state_bytes=self.cache_bytes(seq_len),
        )


def masked_softmax(scores: Tensor, seen: Tensor) -> Tensor:
    """Softmax over the last axis where `seen`; 0 in rows that see nothing."""
    lowest = torch.finfo(scores.dtype).min
    return torch.where(seen, torch.softmax(scores.masked_fill(~seen, lowest), -1), 0)
