"""Softmax attention: multi-head, grouped-query and multi-query (Vaswani et al. 2017; Shazeer 2019; Ainslie et al.
2023).

    o_t = sum_{j <= t} softmax_j( q_t . k_j / sqrt(K) + bias ) v_j

with any position kind (RoPE, ALiBi, absolute, none), a window `t - w < j <= t`, RMS-normed queries and keys (QK-norm),
and a soft cap `c tanh(s / c)` on the scores. The product itself runs through transformers' AttentionInterface: eager,
sdpa, flex or flash attention.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS, POSITIONS
from ..attention_product import AttentionProduct, cache_element_bytes
from ..contract import EMPTY_CONTEXT, LayerContext
from ..norms import ArchRMSNorm
from ..positions import apply_rotary
from ..rope_parameters import RotarySpec
from .base import Mixer, MixerCost, divide


@options
class AttentionOptions(Options):
    """None takes the config's value: heads, KV heads, head_dim, bias, window (0 = none), soft cap, RoPE parameters.
    `scale`: of the scores, None = 1 / sqrt(head_dim)."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    qk_norm: bool | None = None
    qk_norm_eps: float | None = None
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    rope_theta: float | int | None = None


def window_layer_type(window: int | None) -> str:
    """The layer type for an attention window. One of a single token gets a whole cache, and the mask alone: of the
    `window - 1` tokens that transformers' sliding cache keeps it takes 0 for all."""
    return "full_attention" if window is None or window == 1 else "sliding_attention"


@MIXERS.register("attention")
class Attention(Mixer):
    """Grouped-query softmax attention; KV heads from 1 (MQA) to the number of heads (MHA)."""

    Options = AttentionOptions
    cache_kind: ClassVar = "kv"
    config_features: ClassVar[tuple[str, ...]] = (
        *("attention_bias", "qk_norm", "sliding_window", "attn_logit_softcapping", "attention_dropout"),
        *("position", "rope_parameters"),
    )

    def __init__(self, config: Any, options: AttentionOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.num_heads, self.num_kv_heads, self.head_dim = self.sizes(config, options)
        self.attention_window = self.window(config, options)
        self.softcap = config.attn_logit_softcapping if options.softcap is None else options.softcap
        qkv_bias = config.attention_bias if options.qkv_bias is None else options.qkv_bias
        out_bias = config.attention_bias if options.out_bias is None else options.out_bias
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=qkv_bias)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=out_bias)
        if config.qk_norm if options.qk_norm is None else options.qk_norm:
            eps = config.norm_eps if options.qk_norm_eps is None else options.qk_norm_eps
            self.q_norm: nn.Module | None = ArchRMSNorm(self.head_dim, eps)
            self.k_norm: nn.Module | None = ArchRMSNorm(self.head_dim, eps)
        else:
            self.q_norm = self.k_norm = None
        self.product = AttentionProduct(
            config, layer_idx, self.num_heads, self.num_kv_heads, self.head_dim, self.scale(config, options)
        )

    @classmethod
    def sizes(cls, config: Any, options: AttentionOptions) -> tuple[int, int, int]:
        """(heads, KV heads, head_dim), each from the options or else the config."""
        heads = options.num_heads or config.num_attention_heads
        kv_heads = options.num_kv_heads or (heads if options.num_heads else config.num_key_value_heads) or heads
        if options.head_dim is not None:
            return heads, kv_heads, options.head_dim
        if options.num_heads is None and config.head_dim is not None:
            return heads, kv_heads, config.head_dim
        return heads, kv_heads, divide(config.hidden_size, heads, "num_attention_heads", "hidden_size")

    @classmethod
    def scale(cls, config: Any, options: AttentionOptions) -> float:
        """The factor of the scores."""
        return cls.sizes(config, options)[2] ** -0.5 if options.scale is None else options.scale

    @classmethod
    def validate(cls, config: Any, options: AttentionOptions) -> None:
        heads, kv_heads, head_dim = cls.sizes(config, options)
        divide(heads, kv_heads, "num_key_value_heads", "num_attention_heads")
        if POSITIONS.get(config.position, "position").rotary and head_dim % 2:
            raise ConfigError(
                f"head_dim: {head_dim} is odd, RoPE rotates pairs; nearest valid: {head_dim - 1} or {head_dim + 1}"
            )
        window = cls.window(config, options)
        if window is not None and window < 0:
            raise ConfigError(
                f"sliding_window: {window} is not allowed; use a number of tokens >= 1, or 0 for no window"
            )

    @classmethod
    def layer_type(cls, config: Any, options: AttentionOptions) -> str:
        return window_layer_type(cls.window(config, options))

    @classmethod
    def window(cls, config: Any, options: AttentionOptions) -> int | None:
        return (config.sliding_window if options.window is None else options.window) or None

    @classmethod
    def rotary(cls, config: Any, options: AttentionOptions) -> RotarySpec | None:
        if not POSITIONS.get(config.position, "position").rotary:
            return None
        parameters = dict(config.rope_parameters)
        if options.rope_theta is not None:
            parameters["rope_theta"] = options.rope_theta
        return RotarySpec(cls.sizes(config, options)[2], parameters, config.max_position_embeddings)

    @classmethod
    def tensor_parallel(cls, config: Any, options: AttentionOptions) -> dict[str, str]:
        if POSITIONS.get(config.position, "position").bias:
            return {}  # ALiBi's slopes are those of all heads
        plan = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "o_proj": "rowwise"}
        if config.qk_norm if options.qk_norm is None else options.qk_norm:
            plan |= {"q_norm": "replicated_with_grad_allreduce", "k_norm": "replicated_with_grad_allreduce"}
        return plan

    @classmethod
    def effective(cls, config: Any, options: AttentionOptions) -> dict[str, Any]:
        heads, kv_heads, head_dim = cls.sizes(config, options)
        spec = cls.rotary(config, options)
        qk_norm = config.qk_norm if options.qk_norm is None else options.qk_norm
        return {
            "class": cls.__name__,
            "heads": (heads, kv_heads, head_dim),
            "rope": None if spec is None else spec.key,
            "window": cls.window(config, options),
            "scale": cls.scale(config, options),
            "softcap": config.attn_logit_softcapping if options.softcap is None else options.softcap,
            "qkv_bias": config.attention_bias if options.qkv_bias is None else options.qkv_bias,
            "out_bias": config.attention_bias if options.out_bias is None else options.out_bias,
            "qk_norm": (config.norm_eps if options.qk_norm_eps is None else options.qk_norm_eps) if qk_norm else None,
        }

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape)
        key = self.k_proj(hidden_states).view(shape)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        rotary = context.position_embeddings
        if rotary is not None:
            query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        key, value = context.update_kv(key, value, self.layer_idx)
        out, _ = self.product(
            query,
            key,
            value,
            context.attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            sliding_window=self.attention_window,
            softcap=self.softcap,
            position_bias=context.position_bias,
            position_ids=context.position_ids,
            **context.attention_kwargs,
        )
        return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1))

    def cost(self, seq_len: int) -> MixerCost:
        """4 H K FLOPs a pair of tokens, over the whole square of T T pairs, as the kernels' counters have it; a step
        over T cached tokens has T + 1 pairs. 2 Hkv K numbers of cache a token, with a window w of w - 1 tokens at most.
        """
        pair = 4 * self.num_heads * self.head_dim
        kept = seq_len if self.attention_window is None else min(seq_len, self.attention_window - 1)
        element = 2 * self.num_kv_heads * self.head_dim * cache_element_bytes(self.config)
        attended = seq_len + 1 if self.attention_window is None else min(seq_len + 1, self.attention_window)
        return MixerCost(
            mixing_flops=pair * seq_len * seq_len,
            decode_flops=pair * attended,
            state_bytes=kept * element,
        )
