"""The attention product softmax(Q K^T) V, through transformers' AttentionInterface (eager, sdpa, flex, flash)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..ops.precision import state_dtype


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The formula written out; q [B,H,T,K], k and v [B,Hkv,S,...], mask bool or additive or None (then causal).

    Returns:
        output [B,T,H,V] and weights [B,H,T,S].
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is None and scores.shape[2] > 1:
        length, total = scores.shape[2:]
        attention_mask = torch.ones(length, total, dtype=torch.bool, device=scores.device).tril(total - length)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=state_dtype(query)).to(query.dtype)
    dropped = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2).contiguous(), weights


class AttentionProduct(nn.Module):
    """softmax(QK^T)V through transformers' AttentionInterface; a module of its own so that its weights can be
    recorded."""

    def __init__(self, config: Any, layer_idx: int, num_heads: int, num_kv_heads: int, head_dim: int, scaling: float):
        super().__init__()
        self.config, self.layer_idx, self.head_dim, self.scaling = config, layer_idx, head_dim, scaling
        self.num_key_value_groups = num_heads // num_kv_heads
        self.is_causal = True

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        implementation = self.config._attn_implementation
        # sdpa has no soft cap: it would refuse, where the formula written out is exact.
        use_eager = implementation == "sdpa" and kwargs.get("softcap") is not None
        attend = (
            eager_attention if use_eager else ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        )
        return attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)


def cache_element_bytes(config: Any) -> int:
    """Bytes of one number in a cache of keys and values, which take the activations' dtype."""
    return (config.dtype or torch.float32).itemsize
