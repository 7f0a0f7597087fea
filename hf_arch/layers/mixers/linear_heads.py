"""What the linear-attention mixers share: head sizes (K = D expand_k / H, V = D expand_v / H, grouped keys and values),
projections, the gated output and the cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.registry import ACTIVATIONS
from ..attention_product import cache_element_bytes
from ..initial import FLA
from ..layout import SequenceLayout
from ..norms import ArchRMSNorm, GatedRMSNorm
from ..plain_linear import project
from ..short_conv import ShortConvolution
from ..state import LayerState
from .base import CacheKind, MixerCost, RecurrentMixer, divide


@dataclass(frozen=True)
class HeadSizes:
    """H heads of key dim K and value dim V; `num_kv_heads` of them have keys and values of their own, each serving
    consecutive heads."""

    num_heads: int
    num_kv_heads: int
    head_k_dim: int
    head_v_dim: int

    @property
    def key_dim(self) -> int:
        return self.num_heads * self.head_k_dim

    @property
    def value_dim(self) -> int:
        return self.num_heads * self.head_v_dim

    @property
    def kv_key_dim(self) -> int:
        return self.num_kv_heads * self.head_k_dim

    @property
    def kv_value_dim(self) -> int:
        return self.num_kv_heads * self.head_v_dim

    def split(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, .] projections -> q, k [B, T, H, K] and v [B, T, H, V], grouped heads repeated."""
        k = repeat_kv_heads(self, k.unflatten(-1, (self.num_kv_heads, self.head_k_dim)))
        v = repeat_kv_heads(self, v.unflatten(-1, (self.num_kv_heads, self.head_v_dim)))
        return q.unflatten(-1, (self.num_heads, self.head_k_dim)), k, v


def repeat_kv_heads(sizes: HeadSizes, x: Tensor) -> Tensor:
    """[B, T, Hkv, .] -> [B, T, H, .], each KV head repeated for the consecutive heads that it serves."""
    groups = sizes.num_heads // sizes.num_kv_heads
    return x if groups == 1 else x.repeat_interleave(groups, dim=2)


def kv_heads(config: Any, options: Any) -> tuple[int, int]:
    """(heads, heads with keys and values of their own), from the options or else the config."""
    heads = options.num_heads or config.num_attention_heads
    own = options.num_kv_heads or (heads if options.num_heads else config.num_key_value_heads) or heads
    divide(heads, own, "num_key_value_heads", "num_attention_heads")
    return heads, own


def linear_head_sizes(config: Any, options: Any) -> HeadSizes:
    """Sizes from options with `num_heads`, `num_kv_heads`, `expand_k` and `expand_v`; ConfigError where they do
    not divide."""
    heads, own = kv_heads(config, options)
    key_dim = expanded_width(config.hidden_size, options.expand_k, "expand_k")
    value_dim = expanded_width(config.hidden_size, options.expand_v, "expand_v")
    return HeadSizes(
        heads,
        own,
        divide(key_dim, heads, "num_attention_heads", "hidden_size * expand_k ="),
        divide(value_dim, heads, "num_attention_heads", "hidden_size * expand_v ="),
    )


def square_head_sizes(config: Any, options: Any) -> HeadSizes:
    """Keys and values of one width, from options with `num_heads` and `head_dim`; a head_dim of the config's goes with
    the config's number of heads."""
    heads = options.num_heads or config.num_attention_heads
    own = config.head_dim if options.num_heads is None else None
    width = options.head_dim or own or divide(config.hidden_size, heads, "num_attention_heads", "hidden_size")
    return HeadSizes(heads, heads, width, width)


def expanded_width(width: int, factor: float, field: str) -> int:
    """`width * factor`, which must be whole (but for rounding, as in 30 * 1.1); a ConfigError where it is not."""
    product = width * factor
    if round(product) < 1 or abs(product - round(product)) > 1e-6 * product:
        near = max(1, round(product)) / width
        raise ConfigError(f"{field}: {factor} times {width} is not a whole width; nearest valid: {near:.6g}")
    return round(product)


class LinearHeadsMixer(RecurrentMixer):
    """A recurrent mixer with query, key and value heads and the output W_o[ RMSNorm(o) * gate(W_g x) ], the norm
    over each head."""

    cache_kind: ClassVar[CacheKind] = "recurrent+conv"
    inits: ClassVar = FLA
    state_products: ClassVar[int] = 2
    """Products with the state a token: k v^T into it and q^T S out of it; the delta rule recalls S^T k as well."""

    def __init__(self, config: Any, options: Any, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.sizes = self.head_sizes(config, options)
        sizes, width = self.sizes, config.hidden_size
        self.q_proj = nn.Linear(width, sizes.key_dim, bias=False)
        self.k_proj = nn.Linear(width, sizes.kv_key_dim, bias=False)
        self.v_proj = nn.Linear(width, sizes.kv_value_dim, bias=False)
        self.o_proj = nn.Linear(sizes.value_dim, width, bias=False)

    @classmethod
    def head_sizes(cls, config: Any, options: Any) -> HeadSizes:
        """The mixer's head sizes; a ConfigError where they do not divide."""
        return linear_head_sizes(config, options)

    @classmethod
    def qkv_widths(cls, config: Any, options: Any) -> tuple[int, int, int] | None:
        sizes = cls.head_sizes(config, options)
        return sizes.key_dim, sizes.kv_key_dim, sizes.kv_value_dim

    @classmethod
    def value_heads(cls, config: Any, options: Any) -> int:
        sizes = cls.head_sizes(config, options)
        return sizes.kv_value_dim // sizes.head_v_dim

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        cls.head_sizes(config, options)

    def build_short_convs(self, conv_size: int, activation: str | None = "silu") -> None:
        """Add a short convolution to each of queries, keys and values (`project` applies them)."""
        sizes = self.sizes
        self.q_conv = ShortConvolution(sizes.key_dim, conv_size, activation=activation, state_index=0)
        self.k_conv = ShortConvolution(sizes.kv_key_dim, conv_size, activation=activation, state_index=1)
        self.v_conv = ShortConvolution(sizes.kv_value_dim, conv_size, activation=activation, state_index=2)

    def build_output(
        self, gated: bool, activation: str = "silu", *, eps: float | None = None, affine: bool = True
    ) -> None:
        """Add the norm over each head's output and, where `gated`, its gate (`read_out` applies them)."""
        eps = self.config.norm_eps if eps is None else eps
        if gated:
            self.g_proj: nn.Module = nn.Linear(self.config.hidden_size, self.sizes.value_dim, bias=False)
            self.o_norm: nn.Module = GatedRMSNorm(self.sizes.head_v_dim, eps, activation, affine)
        else:
            self.o_norm = ArchRMSNorm(self.sizes.head_v_dim, eps, affine)

    def projections(self, x: Tensor, state: LayerState) -> tuple[Tensor, ...]:
        """[B, T, D] -> q [B, T, H K], k [B, T, Hkv K], v [B, T, Hkv V], through the sites of `qkv`."""
        return state.at("qkv", x, *(project(layer, x) for layer in (self.q_proj, self.k_proj, self.v_proj)))

    def project(self, x: Tensor, layout: SequenceLayout, state: LayerState) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> q [B, T, H K], k [B, T, Hkv K], v [B, T, Hkv V], through the sites of `qkv` and the short
        convolutions where there are any."""
        q, k, v = self.projections(x, state)
        if hasattr(self, "q_conv"):
            q, k, v = self.q_conv(q, layout, state), self.k_conv(k, layout, state), self.v_conv(v, layout, state)
        return q, k, v

    def read_out(self, x: Tensor, out: Tensor) -> Tensor:
        """The heads' output [B, T, H, V] -> [B, T, D]."""
        out = self.o_norm(out, project(self.g_proj, x).view_as(out)) if hasattr(self, "g_proj") else self.o_norm(out)
        return project(self.o_proj, out.flatten(2))

    def state_entries(self) -> int:
        """H K V fp32 numbers."""
        return self.sizes.num_heads * self.sizes.head_k_dim * self.sizes.head_v_dim

    def cost(self, seq_len: int) -> MixerCost:
        """`state_products` multiply-adds a token for each number of the state; the convolutions besides."""
        element = cache_element_bytes(self.config)
        convs = [module for module in self.children() if isinstance(module, ShortConvolution)]
        entries = self.state_entries()
        per_token = 2 * self.state_products * entries + sum(conv.flops(1) for conv in convs)
        return MixerCost(
            mixing_flops=per_token * seq_len,
            decode_flops=per_token,
            state_bytes=4 * entries + sum(conv.state_bytes(element) for conv in convs),
        )


class FeatureMapMixer(LinearHeadsMixer):
    """With `feature_map` among its options: an activation by name for queries and keys, or None."""

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        super().validate(config, options)
        if options.feature_map is not None:
            ACTIVATIONS.get(options.feature_map, "feature_map")

    def mapped_heads(self, x: Tensor, layout: SequenceLayout, state: LayerState) -> tuple[Tensor, Tensor, Tensor]:
        """q, k [B, T, H, K] and v [B, T, H, V]; keys at padding are 0."""
        q, k, v = self.project(x, layout, state)
        if self.options.feature_map is not None:
            feature_map = ACTIVATIONS.get(self.options.feature_map)
            q, k = feature_map(q), feature_map(k)
        return self.sizes.split(q, layout.zero_padding(k), v)
