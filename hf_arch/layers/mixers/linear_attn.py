"""Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236) with a choice of feature maps.

    S_t = S_{t-1} + phi(k_t) v_t^T,   o_t = (phi(q_t) / sqrt(K))^T S_t,   y_t = W_o RMSNorm(o_t)
    normalised:   z_t = z_{t-1} + phi(k_t),   o_t = (phi(q_t)^T S_t) / (phi(q_t)^T z_t + eps)

with K features a head. The normaliser z is one more column of the state, fed by values of one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.linear_attention import linear_attention
from ...ops.precision import state_dtype
from ..contract import LayerContext
from ..feature_maps import FEATURE_MAPS, FeatureMap
from ..layout import SequenceLayout
from ..state import LayerState
from .base import CacheKind, MixerCost
from .linear_heads import LinearHeadsMixer, repeat_kv_heads

NORM_EPS = 1e-10
SUM_EPS = 1e-4


@options
class LinearAttentionOptions(Options):
    """num_heads and num_kv_heads: None takes the config's. `tie_feature_map`: one map for queries and keys; `norm_q`,
    `norm_k`: features divided by their sum; `normalize`: outputs divided by the sum of their weights."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    expand_k: float | int = 1.0
    expand_v: float | int = 1.0
    feature_map: str = "elementwise_product"
    tie_feature_map: bool = False
    norm_q: bool = False
    norm_k: bool = False
    normalize: bool = False
    output_norm_affine: bool = True


@MIXERS.register("linear_attn")
class LinearAttention(LinearHeadsMixer):
    """Linear attention without decay."""

    Options = LinearAttentionOptions
    cache_kind: ClassVar[CacheKind] = "recurrent"
    label: ClassVar[str] = "LinAttn"

    def __init__(self, config: Any, options: LinearAttentionOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        feature_map = FEATURE_MAPS.get(options.feature_map, "feature_map")
        self.q_map: FeatureMap = feature_map(self.sizes.head_k_dim)
        self.k_map: FeatureMap | None = None if options.tie_feature_map else feature_map(self.sizes.head_k_dim)
        self.build_output(gated=False, affine=options.output_norm_affine)

    @classmethod
    def validate(cls, config: Any, options: LinearAttentionOptions) -> None:
        super().validate(config, options)
        FEATURE_MAPS.get(options.feature_map, "feature_map")

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.project(x, layout, state)
        q = self.q_map(q.unflatten(-1, (self.sizes.num_heads, -1)))
        k = (self.k_map or self.q_map)(k.unflatten(-1, (self.sizes.num_kv_heads, -1)))
        if self.options.norm_q:
            q = q / (q.sum(-1, keepdim=True) + SUM_EPS)
        if self.options.norm_k:
            k = k / (k.sum(-1, keepdim=True) + SUM_EPS)
        k = layout.zero_padding(repeat_kv_heads(self.sizes, k))  # a map may make features of nothing
        v = repeat_kv_heads(self.sizes, v.unflatten(-1, (self.sizes.num_kv_heads, -1)))
        attend = normalized_linear_attention if self.options.normalize else linear_attention
        out = state.advance(attend, q, k, v, layout=layout)
        return self.read_out(x, out)

    def state_entries(self) -> int:
        """H F V fp32 numbers, F the features of a key; with `normalize` H F (V + 1)."""
        columns = self.sizes.head_v_dim + (1 if self.options.normalize else 0)
        return self.sizes.num_heads * self.q_map.feature_dim * columns

    def cost(self, seq_len: int) -> MixerCost:
        """Feature maps with weights act on every head; as Linear layers they would be counted once."""
        of_q, of_k = linear_weights(self.q_map), linear_weights(self.k_map or self.q_map)
        counted = of_q + (of_k if self.k_map is not None else 0)
        again = 2 * (self.sizes.num_heads * of_q + self.sizes.num_kv_heads * of_k - counted)
        base = super().cost(seq_len)
        return replace(base, mixing_flops=base.mixing_flops + again * seq_len, decode_flops=base.decode_flops + again)

    def init_weights(self) -> None:
        for module in self.children():
            if isinstance(module, FeatureMap):
                module.init_weights()


def linear_weights(module: nn.Module) -> int:
    """Weights of the Linear layers in a module."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def normalized_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, eps: float = NORM_EPS, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """`linear_attention` whose outputs are divided by the sum of their weights plus `eps`; the state is
    [B, H, K, V + 1], the normaliser its last column."""
    values = v.to(state_dtype(v))
    out, final = linear_attention(q, k, torch.cat((values, torch.ones_like(values[..., :1])), -1), **kwargs)
    return (out[..., :-1] / (out[..., -1:] + eps)).to(v.dtype), final
