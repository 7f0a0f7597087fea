"""Shared-key attention (He et al. 2024, Rodimus+, arXiv 2410.06577): one key for all heads, a value for each.

    o_t = sum_{j <= t} softmax_j( q_t . k_j / sqrt(K) ) v_j

for each head's q and v, with rotary positions, a window `t - w < j <= t` and RMS-normed queries and keys as options.
The cache holds K + H K numbers a token where multi-head attention has 2 H K.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ..attention_product import AttentionProduct, cache_element_bytes
from .attention_heads import AttentionCall, AttentionHeads
from .base import MixerCost, divide
from .windows import Windowed, tokens_kept


@options
class SharedKeyOptions(Options):
    """None takes the config's value. `window`: in tokens, 0 = none."""

    num_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    qk_norm: bool | None = None
    qk_norm_eps: float | None = None
    window: int | None = None
    rope_theta: float | int | None = None


@MIXERS.register("shared_key")
class SharedKeyAttention(Windowed, AttentionHeads):
    """See above. In the cache the values of all heads are one wide one, as keys are."""

    Options = SharedKeyOptions
    label: ClassVar[str] = "SKA"
    config_features: ClassVar[tuple[str, ...]] = ("attention_bias", "qk_norm", "sliding_window", "rope_parameters")

    def __init__(self, config: Any, options: SharedKeyOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        width = self.num_heads * self.head_dim
        self.v_proj = nn.Linear(config.hidden_size, width, bias=self.v_proj.bias is not None)
        self.attention_window = self.window(config, options)
        scale = self.scale(config, options)
        self.product = AttentionProduct(config, layer_idx, self.num_heads, self.num_heads, self.head_dim, scale)

    @classmethod
    def sizes(cls, config: Any, options: SharedKeyOptions) -> tuple[int, int, int]:
        heads = options.num_heads or config.num_attention_heads
        own = config.head_dim if options.num_heads is None else None
        width = options.head_dim or own or divide(config.hidden_size, heads, "num_attention_heads", "hidden_size")
        return heads, 1, width

    @classmethod
    def qkv_widths(cls, config: Any, options: SharedKeyOptions) -> tuple[int, int, int]:
        heads, _, head_dim = cls.sizes(config, options)
        return heads * head_dim, head_dim, heads * head_dim

    @classmethod
    def value_heads(cls, config: Any, options: SharedKeyOptions) -> int:
        return cls.sizes(config, options)[0]

    @classmethod
    def rotates(cls, config: Any, options: SharedKeyOptions) -> bool:
        return True

    @classmethod
    def validate(cls, config: Any, options: SharedKeyOptions) -> None:
        super().validate(config, options)
        if options.window is not None and options.window < 0:
            raise ConfigError(f"window: {options.window} is not allowed; use a number of tokens >= 1, or 0 for none")

    @classmethod
    def effective(cls, config: Any, options: SharedKeyOptions) -> dict[str, Any]:
        return {**super().effective(config, options), "window": cls.window(config, options)}

    def split_value(self, value: Tensor) -> Tensor:
        return value.unsqueeze(1)

    def attend(self, call: AttentionCall) -> Tensor:
        query, key, value, context = call.query, call.key, call.value, call.context
        out, _ = self.product(
            query,
            key.expand(-1, self.num_heads, -1, -1),
            value.squeeze(1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2),
            context.attention_mask,
            sliding_window=self.attention_window,
            position_ids=context.position_ids,
            **context.attention_kwargs,
        )
        return out

    def cache_bytes(self, tokens: int) -> int:
        return tokens * (1 + self.num_heads) * self.head_dim * cache_element_bytes(self.config)

    def cost(self, seq_len: int) -> MixerCost:
        """4 H K FLOPs a pair of tokens; with a window w the cache holds w - 1 tokens at most."""
        kept, pair = tokens_kept(seq_len, self.attention_window), 4 * self.num_heads * self.head_dim
        return MixerCost(
            mixing_flops=pair * seq_len * seq_len,
            decode_flops=pair * (kept + 1),
            state_bytes=self.cache_bytes(kept),
        )
