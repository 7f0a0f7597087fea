"""What every attention over keys shares, in four stages, each of which a subclass may override alone:

    project   hidden states -> queries, keys, values [B, H, T, K] (QK-norm and rotation included)
    kept      what else of each token is cached next to its key, or None
    attend    queries over all keys, the cached ones included -> [B, T, H, V]
    read_out  [B, T, H, V] -> [B, T, D] (gates, norms, the output projection)

Legend: B batch, T tokens of this call, S keys, H heads, Hkv key heads, K key dim, V value dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import POSITIONS
from ...ops.rotary import apply_rotary
from ..attention_product import cache_element_bytes
from ..contract import EMPTY_CONTEXT, LayerContext, LayerOutput
from ..initial import TRANSFORMERS
from ..key_positions import KeyPositions, key_positions
from ..norms import AllHeadsRMSNorm, ArchRMSNorm, OffsetRMSNorm
from ..plain_linear import project
from ..rope_parameters import RotarySpec
from .base import CacheKind, Mixer, divide


@options
class HeadsOptions(Options):
    """None takes the config's value."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    qk_norm: bool | None = None
    qk_norm_eps: float | None = None


@dataclass(frozen=True)
class AttentionCall:
    """What `attend` is given.

    query: [B, H, T, K], of this call's tokens. key: [B, Hkv, S, K], value: [B, Hkv, S, V], of all tokens, the cached
    ones included. kept: what `kept` gave for all of them, [B, Hkv, S, E], or None. hidden_states: [B, T, D], what the
    layer was given.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    kept: Tensor | None
    hidden_states: Tensor
    context: LayerContext


class AttentionHeads(Mixer):
    """Projections, QK-norm, rotation, the cache, and the output projection; subclasses write `attend`."""

    cache_kind: ClassVar[CacheKind] = "kv"
    config_features: ClassVar[tuple[str, ...]] = ("attention_bias", "qk_norm")
    inits: ClassVar = TRANSFORMERS

    def __init__(self, config: Any, options: Any, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.num_heads, self.num_kv_heads, self.head_dim = self.sizes(config, options)
        self.num_groups = self.num_heads // self.num_kv_heads
        qkv_bias = config.attention_bias if options.qkv_bias is None else options.qkv_bias
        out_bias = config.attention_bias if options.out_bias is None else options.out_bias
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=qkv_bias)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=out_bias)
        eps = self.norm_eps(config, options)
        self.q_norm = None if eps is None else self.head_norm(self.num_heads, eps)
        self.k_norm = None if eps is None else self.head_norm(self.num_kv_heads, eps)
        # Of a single token, queries and keys are turned in one pass: the operations are few but all have a fixed cost.
        self._turns_together = type(self).placed is AttentionHeads.placed

    def head_norm(self, num_heads: int, eps: float) -> nn.Module:
        """The norm of queries or keys [B, T, num_heads, K]: RMSNorm, with the offset of the config's if any."""
        return (OffsetRMSNorm if self.config.norm == "rmsnorm_offset" else ArchRMSNorm)(self.head_dim, eps)

    @classmethod
    def sizes(cls, config: Any, options: Any) -> tuple[int, int, int]:
        """(heads, KV heads, head_dim), each from the options or else the config."""
        heads = options.num_heads or config.num_attention_heads
        kv_heads = options.num_kv_heads or (heads if options.num_heads else config.num_key_value_heads) or heads
        if options.head_dim is not None:
            return heads, kv_heads, options.head_dim
        if options.num_heads is None and config.head_dim is not None:
            return heads, kv_heads, config.head_dim
        return heads, kv_heads, divide(config.hidden_size, heads, "num_attention_heads", "hidden_size")

    @classmethod
    def qkv_widths(cls, config: Any, options: Any) -> tuple[int, int, int] | None:
        heads, kv_heads, head_dim = cls.sizes(config, options)
        return heads * head_dim, kv_heads * head_dim, kv_heads * head_dim

    @classmethod
    def value_heads(cls, config: Any, options: Any) -> int:
        return cls.sizes(config, options)[1]

    @classmethod
    def norm_eps(cls, config: Any, options: Any) -> float | None:
        """The epsilon of QK-norm, None without."""
        if not (config.qk_norm if options.qk_norm is None else options.qk_norm):
            return None
        return config.norm_eps if options.qk_norm_eps is None else options.qk_norm_eps

    @classmethod
    def scale(cls, config: Any, options: Any) -> float:
        """The factor of the scores."""
        parametrization, given = config.parametrization_spec
        return parametrization.attention_scale(config, given, cls.sizes(config, options)[2])

    @classmethod
    def rotates(cls, config: Any, options: Any) -> bool:
        """Whether queries and keys are rotated (RoPE); never, unless a subclass says when."""
        return False

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        heads, kv_heads, head_dim = cls.sizes(config, options)
        divide(heads, kv_heads, "num_key_value_heads", "num_attention_heads")
        if cls.rotates(config, options) and head_dim % 2:
            raise ConfigError(
                f"head_dim: {head_dim} is odd, RoPE rotates pairs; nearest valid: {head_dim - 1} or {head_dim + 1}"
            )

    @classmethod
    def rotary(cls, config: Any, options: Any) -> RotarySpec | None:
        if not cls.rotates(config, options):
            return None
        parameters = dict(config.rope_parameters)
        if options.rope_theta is not None:
            parameters["rope_theta"] = options.rope_theta
        return RotarySpec(cls.sizes(config, options)[2], parameters, config.max_position_embeddings)

    @classmethod
    def effective(cls, config: Any, options: Any) -> dict[str, Any]:
        spec = cls.rotary(config, options)
        return {
            **super().effective(config, options),
            "num_heads": None,
            "num_kv_heads": None,
            "head_dim": None,
            "rope_theta": None,
            "heads": cls.sizes(config, options),
            "rope": None if spec is None else spec.key,
            "scale": cls.scale(config, options),
            "qkv_bias": config.attention_bias if options.qkv_bias is None else options.qkv_bias,
            "out_bias": config.attention_bias if options.out_bias is None else options.out_bias,
            "qk_norm": cls.norm_eps(config, options),
            "qk_norm_eps": None,
        }

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor | LayerOutput:
        query, key, value = self.project(hidden_states, context)
        kept = self.kept(hidden_states, key, context)
        cached = key if kept is None else torch.cat((key, kept), -1)
        keys, values = context.update_kv(cached, value, self.layer_idx)
        if kept is not None:
            keys, kept = keys[..., : key.shape[-1]], keys[..., key.shape[-1] :]
        heads = self.attend(AttentionCall(query, keys, values, kept, hidden_states, context))
        out = self.read_out(heads, hidden_states, value)
        published = self.published(keys, values, value)
        return LayerOutput(out, published) if published else out

    def published(self, keys: Tensor, values: Tensor, value: Tensor) -> dict[str, Tensor]:
        """What the layer `publishes`, each [B, S or T, Hkv, ...]; nothing, unless a subclass says what.

        Args:
            keys, values: of all tokens, [B, Hkv, S, ...]. value: of this call's, [B, Hkv, T, V].
        """
        return {}

    def project(self, hidden_states: Tensor, context: LayerContext) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> queries [B, H, T, K], keys [B, Hkv, T, K], values [B, Hkv, T, V] of this call's tokens."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (project(layer, hidden_states) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q_norm, k_norm = self.q_norm, self.k_norm
        if isinstance(q_norm, AllHeadsRMSNorm) and isinstance(k_norm, AllHeadsRMSNorm):  # whole, before sites
            query, key = q_norm(query.view(shape)).flatten(-2), k_norm(key.view(shape)).flatten(-2)
            q_norm = k_norm = None
        query, key, value = context.at("qkv", hidden_states, query, key, value)
        query, key = query.view(shape), key.view(shape)
        if self._turns_together and shape[1] == 1 and context.position_embeddings is not None:
            both = torch.cat((_normed(query, q_norm), _normed(key, k_norm)), 2).transpose(1, 2)
            query, key = apply_rotary(both, *context.position_embeddings).split((query.shape[2], key.shape[2]), 1)
            return query, key, self.split_value(value)
        query = self.placed(query, q_norm, context)
        key = self.placed(key, k_norm, context)
        return query, key, self.split_value(value)

    def placed(self, heads: Tensor, norm: nn.Module | None, context: LayerContext) -> Tensor:
        """Queries or keys [B, T, H, K], normed and rotated -> [B, H, T, K]."""
        heads = _normed(heads, norm).transpose(1, 2)
        rotary = context.position_embeddings
        return heads if rotary is None else apply_rotary(heads, *rotary)

    def split_value(self, value: Tensor) -> Tensor:
        """Projected values [B, T, Hkv V] -> [B, Hkv, T, V] as the cache holds them."""
        return value.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def kept(self, hidden_states: Tensor, key: Tensor, context: LayerContext) -> Tensor | None:
        """[B, Hkv, T, E], cached behind the keys of this call's tokens in their dtype, or None."""
        return None

    def attend(self, call: AttentionCall) -> Tensor:
        """Queries over all keys and values -> [B, T, H, V]."""
        raise NotImplementedError(f"{type(self).__name__} defines no `attend`")

    def read_out(self, out: Tensor, hidden_states: Tensor, value: Tensor) -> Tensor:
        """The heads' output [B, T, H, V] -> [B, T, D].

        Args:
            hidden_states: [B, T, D], what the layer was given. value: [B, Hkv, T, V], of this call's tokens.
        """
        return project(self.o_proj, out.reshape(*hidden_states.shape[:-1], -1))

    def keys(self, hidden_states: Tensor, context: LayerContext) -> KeyPositions:
        """The key positions that the decoder made; those of a plain batch where the layer is called by itself."""
        if context.keys is not None:
            return context.keys
        if context.cache is not None or context.layout.mask is not None or context.layout.segment_ids is not None:
            raise ValueError(f"{type(self).__name__}: context.keys is missing; `needs_key_positions` must be True")
        length = hidden_states.shape[1]
        return key_positions((1, length), (length, 0, 0), None, None, None, hidden_states.device)

    def per_query_head(self, x: Tensor) -> Tensor:
        """[B, Hkv, ...] -> [B, H, ...], each KV head repeated for the consecutive heads that it serves."""
        return x if self.num_groups == 1 else x.repeat_interleave(self.num_groups, dim=1)

    def cache_bytes(self, tokens: int) -> int:
        """Of the keys and values of `tokens` tokens."""
        return tokens * 2 * self.num_kv_heads * self.head_dim * cache_element_bytes(self.config)


def _normed(heads: Tensor, norm: nn.Module | None) -> Tensor:
    return heads if norm is None else norm(heads)


def config_rotates(config: Any, choice: str | None) -> bool:
    """Whether a layer rotates: by its own option `position`, or else as the config says."""
    return choice == "rope" if choice is not None else POSITIONS.get(config.position, "position").rotary
