"""Keys and values that one layer makes and caches, and later ones attend to (Sun et al. 2024, You Only Cache Once,
arXiv 2405.05254).

`kv_builder` makes k = rotate(W_k x), v = W_v x once from the stream, and writes nothing to it; each `cross_attention`
behind it has queries alone:

    o_t = sum_{j <= t} softmax_j( q_t . k_j / sqrt(K) ) v_j,   y_t = W_o o_t

The cache holds the keys and values of one layer, however many attend to them. `rope_frequencies`: "default" is
theta^(-2i / K); "inclusive" spaces K / 2 of them from 1 to 1 / theta, both taken, theta^(-i / (K / 2 - 1)).

Legend: B batch, T tokens of this call, S keys, H heads, Hkv key heads, K head dim.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.rotary import apply_rotary
from ..attention_product import AttentionProduct, cache_element_bytes
from ..contract import EMPTY_CONTEXT, LayerContext, LayerOutput
from ..norms import ArchRMSNorm
from ..rope_parameters import RotarySpec
from .base import CacheKind, Mixer, MixerCost, divide

SHARED = ("shared_key", "shared_value")
"""What a `kv_builder` publishes: keys and values of all tokens, the cached ones included, [B, S, Hkv, K]."""
Frequencies = Literal["default", "inclusive"]


@options
class KVBuilderOptions(Options):
    """None takes the config's value. `rope_theta`: base of the rotation of keys."""

    num_kv_heads: int | None = None
    head_dim: int | None = None
    bias: bool = False
    rope_theta: float | int = 10000.0
    rope_frequencies: Frequencies = "default"


@options
class CrossAttentionOptions(Options):
    """None takes the config's value; heads of keys and values are those of the builder. `qk_norm`: of queries alone."""

    num_heads: int | None = None
    head_dim: int | None = None
    bias: bool = False
    qk_norm: bool = False
    qk_norm_eps: float = 1e-5
    rope_theta: float | int = 10000.0
    rope_frequencies: Frequencies = "default"


class _SharedHeads(Mixer):
    """The sizes and the rotation of both."""

    cache_kind: ClassVar[CacheKind] = "kv"

    @classmethod
    def takes_prefix(cls, config: Any, options: Any) -> bool:
        return True

    @classmethod
    def width(cls, config: Any, options: Any) -> int:
        """K."""
        heads = getattr(options, "num_heads", None)
        own = config.head_dim if heads is None else None
        count = heads or config.num_attention_heads
        return options.head_dim or own or divide(config.hidden_size, count, "num_attention_heads", "hidden_size")

    @classmethod
    def rotary(cls, config: Any, options: Any) -> RotarySpec:
        parameters = {"rope_type": options.rope_frequencies, "rope_theta": float(options.rope_theta)}
        return RotarySpec(cls.width(config, options), parameters, config.max_position_embeddings)

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        width = cls.width(config, options)
        if width % 2:
            raise ConfigError(
                f"head_dim: {width} is odd, RoPE rotates pairs; nearest valid: {width - 1} or {width + 1}"
            )

    @classmethod
    def effective(cls, config: Any, options: Any) -> dict[str, Any]:
        values = {**super().effective(config, options), "rope_theta": float(options.rope_theta)}
        return {**values, "head_dim": cls.width(config, options)}


@MIXERS.register("kv_builder")
class KVBuilder(_SharedHeads):
    """Makes the shared keys and values."""

    Options = KVBuilderOptions
    label: ClassVar[str] = "KV"
    writes: ClassVar[bool] = False

    def __init__(self, config: Any, options: KVBuilderOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.num_kv_heads, self.head_dim = self.kv_heads(config, options), self.width(config, options)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=options.bias)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=options.bias)

    @classmethod
    def kv_heads(cls, config: Any, options: KVBuilderOptions) -> int:
        """Hkv."""
        return options.num_kv_heads or config.num_key_value_heads or config.num_attention_heads

    @classmethod
    def effective(cls, config: Any, options: KVBuilderOptions) -> dict[str, Any]:
        return {**super().effective(config, options), "num_kv_heads": cls.kv_heads(config, options)}

    @classmethod
    def publishes(cls, config: Any, options: KVBuilderOptions, layer_idx: int) -> tuple[str, ...]:
        return SHARED

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> LayerOutput:
        key, value = (
            projection(hidden_states).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)
            for projection in (self.k_proj, self.v_proj)
        )
        rotary = context.position_embeddings
        assert rotary is not None
        kept = context.update_kv(apply_rotary(key, *rotary), value, self.layer_idx)
        published = dict(zip(SHARED, (x.transpose(1, 2) for x in kept), strict=True))
        return LayerOutput(hidden_states, published)

    def cost(self, seq_len: int) -> MixerCost:
        """2 Hkv K numbers of cache a token."""
        size = 2 * self.num_kv_heads * self.head_dim * cache_element_bytes(self.config)
        return MixerCost(state_bytes=seq_len * size)


@MIXERS.register("cross_attention")
class CrossAttention(_SharedHeads):
    """Attends to the shared keys and values; caches nothing itself."""

    Options = CrossAttentionOptions
    label: ClassVar[str] = "Cross"

    def __init__(self, config: Any, options: CrossAttentionOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.num_heads, self.head_dim = options.num_heads or config.num_attention_heads, self.width(config, options)
        width = self.num_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=options.bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = ArchRMSNorm(self.head_dim, options.qk_norm_eps) if options.qk_norm else None
        kv_heads = self.built(config)[0][0]
        self.product = AttentionProduct(config, layer_idx, self.num_heads, kv_heads, self.head_dim, self.head_dim**-0.5)

    @classmethod
    def fills_cache(cls, config: Any, options: CrossAttentionOptions) -> bool:
        return False

    @classmethod
    def built(cls, config: Any) -> list[tuple[int, int]]:
        """(Hkv, K) of every builder of the model."""
        return [
            (mixer.kv_heads(config, given), mixer.width(config, given))
            for mixer, given in config.mixer_specs
            if issubclass(mixer, KVBuilder)
        ]

    @classmethod
    def validate(cls, config: Any, options: CrossAttentionOptions) -> None:
        super().validate(config, options)
        heads, width = options.num_heads or config.num_attention_heads, cls.width(config, options)
        for kv_heads, key_width in cls.built(config):
            divide(heads, kv_heads, "num_kv_heads", "the heads of cross_attention,")
            if key_width != width:
                raise ConfigError(
                    f"head_dim: {width} of cross_attention is not allowed; nearest valid: {key_width}, the builder's"
                )

    @classmethod
    def effective(cls, config: Any, options: CrossAttentionOptions) -> dict[str, Any]:
        values = super().effective(config, options)
        return {**values, "qk_norm_eps": options.qk_norm_eps if options.qk_norm else None}

    @classmethod
    def needs(cls, config: Any, options: CrossAttentionOptions, layer_idx: int) -> tuple[str, ...]:
        return SHARED

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor:
        query = self.q_proj(hidden_states).unflatten(-1, (self.num_heads, -1))
        query = (query if self.q_norm is None else self.q_norm(query)).transpose(1, 2)
        rotary = context.position_embeddings
        assert rotary is not None
        out, _ = self.product(
            apply_rotary(query, *rotary),
            *(context.values[name].transpose(1, 2) for name in SHARED),
            context.attention_mask,
            position_ids=context.position_ids,
            **context.attention_kwargs,
        )
        return self.o_proj(out.flatten(2))

    def cost(self, seq_len: int) -> MixerCost:
        """4 H K FLOPs a pair of tokens, over the whole square."""
        pair = 4 * self.num_heads * self.head_dim
        return MixerCost(mixing_flops=pair * seq_len * seq_len, decode_flops=pair * (seq_len + 1))
