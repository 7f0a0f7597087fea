"""Forget gates of softmax attention (Lin et al. 2025, Forgetting Transformer, arXiv 2503.02130).

    f_t = logsigmoid(W_f x_t + b) for each query head;   bias_ij = sum_{s = j+1..i} f_s, added to the scores

The logarithms f ride in the cache behind the keys of their KV head, so that whatever a cache does to keys (windows,
beams, static slots, taking tokens back) it does to them. Keys of less than 32 bits carry each f as the sum of two.

Legend: B batch, T tokens of this call, S keys, H query heads, Hkv key heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.precision import state_dtype
from .fp32 import Fp32BiasLinear
from .key_positions import KeyPositions


class ForgetGate(Fp32BiasLinear):
    """W_f and b: [B, T, D] -> [B, T, H], for `log_forget`."""


def log_forget(gates: Tensor, keys: KeyPositions) -> Tensor:
    """W_f x + b [B, T, H] of this call's tokens -> f in fp32, 0 at padding."""
    return keys.zero_padding(F.logsigmoid(gates.to(state_dtype(gates))))


def cache_parts(itemsize: int) -> int:
    """How many numbers of the cache hold one f."""
    return 1 if itemsize >= 4 else 2


def as_key_features(gates: Tensor, num_kv_heads: int, dtype: torch.dtype) -> Tensor:
    """f [B, T, H] -> [B, Hkv, T, n H / Hkv] in the keys' dtype, with n = `cache_parts`."""
    grouped = gates.unflatten(-1, (num_kv_heads, -1)).transpose(1, 2)
    high = grouped.to(dtype)
    if cache_parts(dtype.itemsize) == 1:
        return high
    return torch.cat((high, (grouped - high.to(grouped.dtype)).to(dtype)), -1)


def from_key_features(features: Tensor) -> Tensor:
    """What `as_key_features` made, of all keys [B, Hkv, S, .] -> f [B, H, S] in fp32."""
    if cache_parts(features.dtype.itemsize) == 2:
        high, low = features.float().chunk(2, -1)
        features = high + low
    return features.mT.flatten(1, 2)


def forget_bias(gates: Tensor, slots: Tensor) -> Tensor:
    """f [B, H, S] of all keys -> sum_{s = j+1..i} f_s for the queries i at `slots` [T]: [B, H, T, S], 0 for later j."""
    total = gates.cumsum(-1)
    return (total[..., slots, None] - total[:, :, None]).clamp(max=0)
