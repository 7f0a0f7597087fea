"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434; DeepSeek-V3, arXiv 2412.19437).

    c_t = RMSNorm(W_c x_t),   r_t = RoPE(W_r x_t),   [k_t, v_t] = W_kv c_t,   q_t = [q^c_t, RoPE(q^r_t)]
    o_t = sum_{j <= t} softmax_j( (q^c_t . k_j + q^r_t . r_j) / sqrt(K) ) v_j

Keys and values of all heads come from one latent vector c, and one rotary key r serves all heads. The cache holds
(c, r) only: kv_lora_rank + qk_rope_head_dim numbers a token, however many heads there are. A single step never expands
them (weight absorption): q^c W_k meets c directly, and W_v is applied after the sum.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.precision import state_dtype
from ...ops.rotary import apply_rotary
from ..attention_product import AttentionProduct, cache_element_bytes
from ..compat import uses_flash_attention
from ..contract import EMPTY_CONTEXT, LayerContext
from ..initial import FLA, TRANSFORMERS
from ..norms import ArchRMSNorm
from ..plain_linear import is_plain_linear
from ..rope_parameters import RotarySpec
from .base import CacheKind, Mixer, MixerCost
from .windows import Windowed, tokens_kept


@options
class LatentAttentionOptions(Options):
    """num_heads, bias, window (0 = none), rope_theta, latent_norm_eps: None takes the config's. Where it is not
    given, latent_norm_eps is FLA's (DeepSeek's code has 1e-6). q_lora_rank None: queries straight from x.
    `rope_interleave`: the rotary features are pairs (0, 1), (2, 3) ... instead of halves. `position`: "none" leaves
    queries and keys as they are (Kimi Linear)."""

    num_heads: int | None = None
    q_lora_rank: int | None = None
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    bias: bool | None = None
    window: int | None = None
    rope_theta: float | int | None = None
    rope_interleave: bool = False
    latent_norm_eps: float | None = 1e-5
    position: Literal["rope", "none"] = "rope"


class LatentProduct(AttentionProduct):
    """Attention of one query over latents that all heads share; q [B,H,1,C+R], c [B,1,S,C], r [B,1,S,R]."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        latent: Tensor,
        rotary_key: Tensor,
        attention_mask: Tensor | None,
        position_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Weighted sums of c, [B, H, C], and weights [B, H, 1, S]."""
        # The heads are the rows of one product, so that nothing is copied for each of them.
        key = torch.cat((latent, rotary_key), -1).squeeze(1)
        scores = (query.squeeze(2) @ key.mT).unsqueeze(2) * self.scaling
        softcap = self.config.attn_logit_softcapping
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if position_bias is not None:
            scores = scores + position_bias
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        elif attention_mask is not None:
            scores = scores + attention_mask
        weights = torch.softmax(scores, -1, dtype=state_dtype(query)).to(query.dtype)
        return weights.squeeze(2) @ latent.squeeze(1), weights


@MIXERS.register("mla")
class LatentAttention(Windowed, Mixer):
    """Multi-head latent attention."""

    Options = LatentAttentionOptions
    cache_kind: ClassVar[CacheKind] = "latent"
    label: ClassVar[str] = "MLA"
    inits: ClassVar = {**TRANSFORMERS, **FLA}
    config_features: ClassVar[tuple[str, ...]] = (
        *("attention_bias", "sliding_window", "attn_logit_softcapping", "attention_dropout"),
        *("position", "rope_parameters"),
    )
    unquantized: ClassVar[tuple[str, ...]] = ("kv_b_proj",)

    def __init__(self, config: Any, options: LatentAttentionOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.num_heads = options.num_heads or config.num_attention_heads
        self.qk_head_dim = options.qk_nope_head_dim + options.qk_rope_head_dim
        self.attention_window = self.window(config, options)
        width, bias, eps = config.hidden_size, self.has_bias(config, options), self.norm_eps(config, options)
        if options.q_lora_rank is None:
            self.q_proj = nn.Linear(width, self.num_heads * self.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(width, options.q_lora_rank, bias=bias)
            self.q_norm = ArchRMSNorm(options.q_lora_rank, eps)
            self.q_b_proj = nn.Linear(options.q_lora_rank, self.num_heads * self.qk_head_dim, bias=False)
        self.kv_a_proj = nn.Linear(width, options.kv_lora_rank + options.qk_rope_head_dim, bias=bias)
        self.kv_norm = ArchRMSNorm(options.kv_lora_rank, eps)
        expanded = self.num_heads * (options.qk_nope_head_dim + options.v_head_dim)
        self.kv_b_proj = nn.Linear(options.kv_lora_rank, expanded, bias=False)
        self.o_proj = nn.Linear(self.num_heads * options.v_head_dim, width, bias=bias)
        rotates = options.position == "rope"
        scaling = self.qk_head_dim**-0.5 * (rope_mscale(config.rope_parameters) ** 2 if rotates else 1.0)
        heads = self.num_heads
        self.product = AttentionProduct(config, layer_idx, heads, heads, self.qk_head_dim, scaling)
        self.latent_product = LatentProduct(config, layer_idx, heads, 1, self.qk_head_dim, scaling)

    @classmethod
    def validate(cls, config: Any, options: LatentAttentionOptions) -> None:
        for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise ConfigError(f"mixer mla: {name} {value} is not allowed; use an integer >= 1")
        rope = options.qk_rope_head_dim
        if rope % 2 and options.position == "rope":
            near = f"{rope - 1} or {rope + 1}"
            raise ConfigError(f"mixer mla: qk_rope_head_dim {rope} is odd, RoPE rotates pairs; nearest valid: {near}")

    @classmethod
    def has_bias(cls, config: Any, options: LatentAttentionOptions) -> bool:
        return config.attention_bias if options.bias is None else options.bias

    @classmethod
    def norm_eps(cls, config: Any, options: LatentAttentionOptions) -> float:
        return config.norm_eps if options.latent_norm_eps is None else options.latent_norm_eps

    @classmethod
    def rotary(cls, config: Any, options: LatentAttentionOptions) -> RotarySpec | None:
        if options.position == "none":
            return None
        parameters = dict(config.rope_parameters)
        if options.rope_theta is not None:
            parameters["rope_theta"] = options.rope_theta
        return RotarySpec(options.qk_rope_head_dim, parameters, config.max_position_embeddings)

    @classmethod
    def effective(cls, config: Any, options: LatentAttentionOptions) -> dict[str, Any]:
        spec = cls.rotary(config, options)
        return {
            **super().effective(config, options),
            "bias": cls.has_bias(config, options),
            "window": cls.window(config, options),
            "rope_theta": None if spec is None else spec.key,
            "latent_norm_eps": cls.norm_eps(config, options),
            "softcap": config.attn_logit_softcapping,
            "dropout": config.attention_dropout,
        }

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor:
        rotary, attention_mask, position_bias = (
            context.position_embeddings,
            context.attention_mask,
            context.position_bias,
        )
        nope, rope = self.options.qk_nope_head_dim, self.options.qk_rope_head_dim
        query = self.queries(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        query_nope, query_rope = query.split([nope, rope], -1)
        query_rope = self.rotate(query_rope, rotary)
        latent, key_rope = self.kv_a_proj(hidden_states).unsqueeze(1).split([self.options.kv_lora_rank, rope], -1)
        latent, key_rope = self.kv_norm(latent), self.rotate(key_rope, rotary)
        latent, key_rope = context.update_kv(latent, key_rope, self.layer_idx)
        if context.cache is not None and query.shape[2] == 1 and self.may_absorb(attention_mask):
            out = self.absorbed(query_nope, query_rope, latent, key_rope, attention_mask, position_bias)
        else:
            query = torch.cat((query_nope, query_rope), -1)
            further = {"position_ids": context.position_ids, **context.attention_kwargs}
            out = self.expanded(query, latent, key_rope, attention_mask, position_bias=position_bias, **further)
        return self.o_proj(out.flatten(2))

    def may_absorb(self, attention_mask: Any) -> bool:
        """Whether `kv_b_proj` is nothing but its weight, and the mask one that the latent product takes."""
        mask_is_tensor = attention_mask is None or isinstance(attention_mask, Tensor)
        return mask_is_tensor and not self.training and is_plain_linear(self.kv_b_proj)

    def queries(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, H (nope + rope)]."""
        return self.q_proj(x) if self.options.q_lora_rank is None else self.q_b_proj(self.q_norm(self.q_a_proj(x)))

    def rotate(self, x: Tensor, position_embeddings: tuple[Tensor, Tensor] | None) -> Tensor:
        """RoPE on [B, H, T, R]. Interleaved pairs are first brought into halves, for both queries and keys."""
        if position_embeddings is None:
            return x
        if self.options.rope_interleave:
            x = torch.cat((x[..., 0::2], x[..., 1::2]), -1)
        return apply_rotary(x, *position_embeddings)

    def expanded(self, query: Tensor, latent: Tensor, key_rope: Tensor, mask: Any, **kwargs: Any) -> Tensor:
        """Attention over keys and values of every head: [B, T, H, V]."""
        nope, value_dim = self.options.qk_nope_head_dim, self.options.v_head_dim
        keys_values = self.kv_b_proj(latent.squeeze(1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key_nope, value = keys_values.split([nope, value_dim], -1)
        key = torch.cat((key_nope, key_rope.expand(-1, self.num_heads, -1, -1)), -1)
        # Flash kernels want one size for all three; zeros add nothing.
        missing = self.qk_head_dim - value_dim if uses_flash_attention(self.config) else 0
        out, _ = self.product(
            query,
            key,
            F.pad(value, (0, missing)) if missing > 0 else value,
            mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            sliding_window=self.attention_window,
            softcap=self.config.attn_logit_softcapping,
            **kwargs,
        )
        return out[..., :value_dim] if missing > 0 else out

    def absorbed(
        self,
        query_nope: Tensor,
        query_rope: Tensor,
        latent: Tensor,
        key_rope: Tensor,
        mask: Tensor | None,
        position_bias: Tensor | None,
    ) -> Tensor:
        """The same for a single query, over the latents themselves: [B, 1, H, V]."""
        nope, value_dim = self.options.qk_nope_head_dim, self.options.v_head_dim
        weight = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        to_key, to_value = weight.split([nope, value_dim], 1)
        query = torch.cat((query_nope @ to_key, query_rope), -1)
        if mask is not None and mask.dim() == 2:
            mask = mask[:, None, None, -latent.shape[2] :].bool()
        out, _ = self.latent_product(query, latent, key_rope, mask, position_bias)
        return (out.unsqueeze(2) @ to_value.mT).transpose(1, 2)

    def cost(self, seq_len: int) -> MixerCost:
        """A prefill 2 H (nope + rope + V) FLOPs a pair of tokens, over keys and values that a Linear layer expands; a
        step 2 H (2 R + rope) a cached token, over the latents of R = kv_lora_rank. R + rope numbers of cache a token.
        """
        rank, rope = self.options.kv_lora_rank, self.options.qk_rope_head_dim
        kept = tokens_kept(seq_len, self.attention_window)
        pair = 2 * self.num_heads * (self.qk_head_dim + self.options.v_head_dim)
        return MixerCost(
            mixing_flops=pair * seq_len * seq_len,
            decode_flops=2 * self.num_heads * (2 * rank + rope) * (kept + 1),
            state_bytes=kept * (rank + rope) * cache_element_bytes(self.config),
        )


def rope_mscale(rope_parameters: dict[str, Any]) -> float:
    """YaRN's factor on queries and keys, 0.1 mscale_all_dim ln(factor) + 1 (DeepSeek-V2, appendix B)."""
    scale, factor = rope_parameters.get("mscale_all_dim") or 0, rope_parameters.get("factor") or 1.0
    if rope_parameters.get("rope_type", "default") == "default" or not scale or factor <= 1:
        return 1.0
    return 0.1 * scale * math.log(factor) + 1.0
