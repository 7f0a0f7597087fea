"""PaTH attention (Yang et al. 2025, arXiv 2505.16381): positions by accumulated Householder-like reflections.

    H_t = I - b_t w_t w_t^T,   w = l2norm(silu(conv(W_w x))),   b = 2 sigmoid(W_b x + c), for each KV head
    s_ij = ( q_i^T H_i H_{i-1} ... H_{j+1} k_j + sum_{s = j+1..i} f_s ) / sqrt(K),   softmax, causal

with forget gates f optional. Keys are kept reflected up to the last token: a chunk of C tokens meets them through one
triangular solve, since H_i ... H_{j+1} k = k - sum_s w_s u_s with (I + tril(b w w^T, -1)) u = b (w . k), and then
reflects them further. The cache holds the reflected keys, which is why it cannot take tokens back.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.options import options
from ...core.registry import MIXERS
from ...ops.precision import state_dtype
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..forget_gates import ForgetGate, as_key_features, cache_parts, forget_bias, from_key_features, log_forget
from ..short_conv import ShortConvolution
from .attention_heads import AttentionCall, HeadsOptions
from .base import CacheKind, MixerCost
from .nsa import masked_softmax
from .stickbreaking import PairwiseAttention

CHUNK = 64


@options
class PathOptions(HeadsOptions):
    """`use_low_rank`: w from a projection of rank `low_rank`; `use_short_conv`: a convolution of `conv_size` and SiLU
    on w; `forget_gate`: inside the scale, unlike FoX's."""

    forget_gate: bool = False
    low_rank: int = 32
    use_low_rank: bool = True
    use_short_conv: bool = True
    conv_size: int = 3


@MIXERS.register("path_attention")
class PathAttention(PairwiseAttention):
    """See above."""

    Options = PathOptions
    label: ClassVar[str] = "PaTH"
    cache_kind: ClassVar[CacheKind] = "both"

    def __init__(self, config: Any, options: PathOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        width, key_width = config.hidden_size, self.num_kv_heads * self.head_dim
        if options.use_low_rank:
            self.w_proj: nn.Module = nn.Sequential(
                nn.Linear(width, options.low_rank, bias=False), nn.Linear(options.low_rank, key_width, bias=False)
            )
        else:
            self.w_proj = nn.Linear(width, key_width, bias=False)
        self.w_conv = ShortConvolution(key_width, options.conv_size) if options.use_short_conv else None
        self.b_proj = nn.Linear(width, self.num_kv_heads)
        if options.forget_gate:
            self.f_proj = ForgetGate(width, self.num_heads)

    def kept(self, hidden_states: Tensor, key: Tensor, context: LayerContext) -> Tensor | None:
        if not self.options.forget_gate:
            return None
        gates = log_forget(self.f_proj(hidden_states), self.keys(hidden_states, context))
        return as_key_features(gates, self.num_kv_heads, key.dtype)

    def reflections(self, hidden_states: Tensor, context: LayerContext) -> tuple[Tensor, Tensor]:
        """w [B, Hkv, T, K] and b [B, Hkv, T] of this call's tokens in fp32; b is 0 at padding."""
        w = self.w_proj(hidden_states)
        if self.w_conv is not None:
            layout = context.layout
            w = layout.restore(self.w_conv(layout.compact(w), layout, context.state(self.layer_idx)))
        w = w.unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        w = w.to(state_dtype(w))
        strength = self.b_proj(hidden_states)
        b = 2 * torch.sigmoid(strength.to(state_dtype(strength)))
        b = self.keys(hidden_states, context).zero_padding(b).transpose(1, 2)
        return w * torch.rsqrt(w.square().sum(-1, keepdim=True) + 1e-6), b

    def attend(self, call: AttentionCall) -> Tensor:
        query, key, value, kept = call.query, call.key, call.value, call.kept
        hidden_states, context = call.hidden_states, call.context
        keys = self.keys(hidden_states, context)
        forgotten = None if kept is None else forget_bias(from_key_features(kept), keys.slots)
        if context.cache is not None and torch.is_grad_enabled():
            key = key.clone()  # what derivatives need of it must survive the writing of a static cache
        w, b = self.reflections(hidden_states, context)
        grouped = query.to(w.dtype).unflatten(1, (self.num_kv_heads, self.num_groups))
        reflected, rows = key.to(w.dtype), []
        index = torch.arange(key.shape[2], device=key.device)
        for start in range(0, query.shape[2], CHUNK):
            part = slice(start, start + CHUNK)
            scores, reflected = reflect(
                grouped[:, :, :, part], reflected, w[:, :, part], b[..., part], index, keys.slots[part]
            )
            rows.append(scores)
        if context.cache is not None:
            whole = reflected.to(key.dtype)
            context.replace_keys(whole if kept is None else torch.cat((whole, kept), -1), self.layer_idx)
        scores = torch.cat(rows, 3).flatten(1, 2)
        if forgotten is not None:
            scores = scores + forgotten
        weights = masked_softmax(scores * self.head_dim**-0.5, keys.visible[:, None])
        return (weights.to(value.dtype) @ self.per_query_head(value)).transpose(1, 2)

    def cost(self, seq_len: int) -> MixerCost:
        """For chunks of C tokens: the scores and values of all pairs, 4 H K; w against the keys, their solve and the
        reflection, Hkv (4 K + 2 C), and the solved keys against the queries, 2 H C, for each token and key."""
        heads, kv_heads, size = self.num_heads, self.num_kv_heads, self.head_dim
        convolution = 0 if self.w_conv is None else self.w_conv.flops(1)
        itemsize = cache_element_bytes(self.config)
        gates = heads * cache_parts(itemsize) * itemsize if self.options.forget_gate else 0
        window = 0 if self.w_conv is None else self.w_conv.state_bytes(itemsize)

        def attended(tokens: int, keys: int) -> int:
            chunk = min(tokens, CHUNK)
            return tokens * (keys * (heads * (4 * size + 2 * chunk) + kv_heads * 4 * size) + convolution)

        return MixerCost(
            mixing_flops=attended(seq_len, seq_len),
            decode_flops=attended(1, seq_len + 1),
            state_bytes=self.cache_bytes(seq_len) + seq_len * gates + window,
        )


def reflect(query: Tensor, key: Tensor, w: Tensor, b: Tensor, index: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk: scores of its queries, and all keys reflected by its tokens.

    Args:
        query: [B, Hkv, G, C, K]. key: [B, Hkv, S, K], reflected up to the chunk. w: [B, Hkv, C, K]. b: [B, Hkv, C].
        index: [S], of the keys. slots: [C], where the chunk's tokens are among them.

    Returns:
        q_i^T H_i ... H_{j+1} k_j [B, Hkv, G, C, S] (undefined for later j), and the keys [B, Hkv, S, K].
    """
    unit = torch.eye(w.shape[2], dtype=w.dtype, device=w.device)
    system = unit + b[..., None] * (w @ w.mT).tril(-1)
    # A key meets the reflections of later tokens alone.
    against = torch.where(index < slots[:, None], w @ key.mT, 0) * b[..., None]
    solved = torch.linalg.solve_triangular(system, against, upper=False, unitriangular=True)
    passed = (query @ w[:, :, None].mT).tril()
    scores = query @ key[:, :, None].mT - passed @ solved[:, :, None]
    return scores, key - solved.mT @ w
