"""Based's linear attention with the Taylor feature map (Arora et al. 2024, arXiv 2402.18668).

    o_t = sum_{j <= t} a_tj v_j / (sum_{j <= t} a_tj + eps),   a_tj = 1 + s + s^2 / 2,   s = q_t . k_j / sqrt(d)

which is a recurrence with 1 + d + d (d + 1) / 2 features a head (`components/feature_maps.py`): a small d recalls well
for the size of its state. The architecture alternates it with softmax attention over a short window.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ..contract import LayerContext
from ..feature_maps import Taylor
from ..layout import SequenceLayout
from ..state import LayerState
from .base import CacheKind, divide
from .linear_attn import normalized_linear_attention
from .linear_heads import HeadSizes, LinearHeadsMixer, kv_heads

NORM_EPS = 1e-6


@options
class BasedOptions(Options):
    """num_heads and num_kv_heads: None takes the config's; feature_dim: d, of queries and keys."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    feature_dim: int = 16


@MIXERS.register("based")
class BasedLinearAttention(LinearHeadsMixer):
    """Normalised linear attention with the second-order Taylor expansion of exp as its kernel."""

    Options = BasedOptions
    cache_kind: ClassVar[CacheKind] = "recurrent"
    label: ClassVar[str] = "Based"

    def __init__(self, config: Any, options: BasedOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.feature_map = Taylor(options.feature_dim)

    @classmethod
    def head_sizes(cls, config: Any, options: BasedOptions) -> HeadSizes:
        heads, own = kv_heads(config, options)
        if options.feature_dim < 1:
            raise ConfigError(f"mixer based: feature_dim {options.feature_dim} is not allowed; use an integer >= 1")
        return HeadSizes(
            heads, own, options.feature_dim, divide(config.hidden_size, heads, "num_attention_heads", "hidden_size")
        )

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.sizes.split(*self.project(x, layout, state))
        out = state.advance(
            normalized_linear_attention,
            self.feature_map(q),
            layout.zero_padding(self.feature_map(k)),  # its first feature is 1 even for nothing
            v,
            eps=NORM_EPS,
            scale=1.0,
            layout=layout,
        )
        return self.o_proj(out.flatten(2))

    def state_entries(self) -> int:
        """H F (V + 1) fp32 numbers, F = 1 + d + d (d + 1) / 2."""
        return self.sizes.num_heads * self.feature_map.feature_dim * (self.sizes.head_v_dim + 1)
