"""Mixture of block attention, MoBA (Lu et al. 2025, arXiv 2502.13189).

A query attends to its own block up to itself and, fully, to the `topk - 1` finished blocks with the largest
q . mean(k of the block), chosen for each query head (no gradient through the choice); one softmax over their union.
Each head's output is RMS-normed, optionally gated by sigmoid(W_2 W_1 x), and projected.

The form here is dense, with a mask: exact, and quadratic in the length. A step from a cache makes the same choice.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.options import options
from ...core.registry import MIXERS
from ..key_blocks import key_blocks, largest
from ..norms import ArchRMSNorm
from .attention_heads import AttentionCall, HeadsOptions, config_rotates
from .base import MixerCost
from .nsa import masked_softmax
from .stickbreaking import PairwiseAttention


@options
class BlockMixtureOptions(HeadsOptions):
    """`block_size` in tokens; `topk` blocks, the own one included; `use_output_gate`: of rank head_dim."""

    qk_norm_eps: float | None = 1e-5
    block_size: int = 256
    topk: int = 4
    use_output_gate: bool = False
    output_norm_eps: float = 1e-6
    rope_theta: float | int | None = None


@MIXERS.register("moba")
class BlockMixtureAttention(PairwiseAttention):
    """See above."""

    Options = BlockMixtureOptions
    label: ClassVar[str] = "MoBA"
    config_features: ClassVar[tuple[str, ...]] = ("attention_bias", "qk_norm", "position", "rope_parameters")

    def __init__(self, config: Any, options: BlockMixtureOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.o_norm = ArchRMSNorm(self.head_dim, options.output_norm_eps)
        if options.use_output_gate:
            self.g_proj = nn.Sequential(
                nn.Linear(config.hidden_size, self.head_dim, bias=False),
                nn.Linear(self.head_dim, self.num_heads * self.head_dim, bias=False),
            )

    @classmethod
    def rotates(cls, config: Any, options: BlockMixtureOptions) -> bool:
        return config_rotates(config, None)

    @classmethod
    def validate(cls, config: Any, options: BlockMixtureOptions) -> None:
        super().validate(config, options)
        for name in ("block_size", "topk"):
            if getattr(options, name) < 1:
                raise ConfigError(f"mixer moba: {name} {getattr(options, name)} is not allowed; use an integer >= 1")

    def attend(self, call: AttentionCall) -> Tensor:
        query, key, value, hidden_states, context = call.query, call.key, call.value, call.hidden_states, call.context
        keys = self.keys(hidden_states, context)
        blocks = key_blocks(keys, self.options.block_size)
        index = torch.arange(blocks.number, device=query.device)
        own = (index == blocks.own[..., None])[:, None]
        past = blocks.finished[:, None] & ~own
        with torch.no_grad():
            affinity = self.products(query, blocks.means(key).to(query.dtype)).masked_fill(~past, float("-inf"))
            best = largest(affinity, self.options.topk - 1)
            chosen = (torch.zeros_like(affinity, dtype=torch.bool).scatter(-1, best, True) & past) | own
        itself = (torch.arange(key.shape[2], device=key.device) == keys.slots[:, None])[None, None]
        seen = (blocks.spread(chosen) & keys.visible[:, None]) | itself
        weights = masked_softmax(self.products(query, key), seen)
        return (weights.to(value.dtype) @ self.per_query_head(value)).transpose(1, 2)

    def read_out(self, out: Tensor, hidden_states: Tensor, value: Tensor) -> Tensor:
        out = self.o_norm(out)
        if self.options.use_output_gate:
            out = out * torch.sigmoid(self.g_proj(hidden_states)).view_as(out)
        return super().read_out(out, hidden_states, value)

    def cost(self, seq_len: int) -> MixerCost:
        """2 H K FLOPs a pair of a token with a block, 4 H K a pair of tokens; all keys and values are cached."""
        half = 2 * self.num_heads * self.head_dim

        def attended(keys: int) -> int:
            return 2 * half * keys + half * -(-keys // self.options.block_size)

        return MixerCost(
            mixing_flops=seq_len * attended(seq_len),
            decode_flops=attended(seq_len + 1),
            state_bytes=self.cache_bytes(seq_len),
        )
