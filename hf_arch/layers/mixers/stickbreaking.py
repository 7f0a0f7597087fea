"""Stick-breaking attention (Tan et al. 2024, arXiv 2410.17980): each query breaks a stick from its nearest key on.

    z_ij = q_i . k_j / sqrt(K),   A_ij = sigmoid(z_ij) prod_{j < s <= last} (1 - sigmoid(z_is)),   o_i = sum_j A_ij v_j

with last = i - 1, or i where a token attends to itself (`attend_current`). No positions and no softmax: rows sum to at
most 1, and a document's first token gets 0.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.options import options
from ...core.registry import MIXERS
from ...ops.precision import state_dtype
from ..initial import FLA
from .attention_heads import AttentionCall, AttentionHeads, HeadsOptions
from .base import MixerCost


@options
class StickBreakingOptions(HeadsOptions):
    """`attend_current`: whether a token attends to itself."""

    attend_current: bool = False


class PairwiseAttention(AttentionHeads):
    """Attention that computes its own scores of all pairs of tokens, from key positions."""

    inits: ClassVar = FLA

    @classmethod
    def needs_key_positions(cls, config: Any, options: Any) -> bool:
        return True

    def products(self, query: Tensor, key: Tensor) -> Tensor:
        """Scaled q . k for all pairs in fp32: [B, H, T, S]."""
        scores = query @ self.per_query_head(key).mT
        return scores.to(state_dtype(scores)) * self.scale(self.config, self.options)

    def cost(self, seq_len: int) -> MixerCost:
        """4 H K FLOPs a pair of tokens, over the whole square; 2 Hkv K numbers of cache a token."""
        pair = 4 * self.num_heads * self.head_dim
        return MixerCost(
            mixing_flops=pair * seq_len * seq_len,
            decode_flops=pair * (seq_len + 1),
            state_bytes=self.cache_bytes(seq_len),
        )


@MIXERS.register("stickbreaking")
class StickBreakingAttention(PairwiseAttention):
    """See above; the product is a sum of logarithms from the query backwards."""

    Options = StickBreakingOptions
    label: ClassVar[str] = "StickBreaking"

    def attend(self, call: AttentionCall) -> Tensor:
        query, key, value, hidden_states, context = call.query, call.key, call.value, call.hidden_states, call.context
        keys, scores = self.keys(hidden_states, context), self.products(query, key)
        visible = keys.visible
        if not self.options.attend_current:
            visible = visible & (torch.arange(key.shape[2], device=key.device) < keys.slots[:, None])
        visible = visible[:, None]
        skipped = torch.where(visible, F.logsigmoid(-scores), 0)
        later = F.pad(skipped.flip(-1).cumsum(-1).flip(-1)[..., 1:], (0, 1))
        weights = torch.where(visible, torch.exp(F.logsigmoid(scores) + later), 0)
        return (weights.to(value.dtype) @ self.per_query_head(value)).transpose(1, 2)
