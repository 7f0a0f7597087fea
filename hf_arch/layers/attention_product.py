"""The attention product softmax(Q K^T) V, through transformers' AttentionInterface (eager, sdpa, flex, flash)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError
from ..ops.attention import attention, has_attention
from ..ops.compat import forward_mode, functorch_levels
from ..ops.native import unobserved
from ..ops.precision import state_dtype
from .bands import Band
from .compat import (
    ALL_ATTENTION_FUNCTIONS,
    attention_implementation,
    sdpa_attention_forward,
    uses_flash_attention,
)

CONFIG_READERS = ("vllm",)
"""Implementations that read windows and soft caps from the config and know no biases, whatever a call says."""

_SPECIAL = ("position_bias", "s_aux", "softcap", "is_causal", "cache")
"""Options that `attention` does not know."""

SHORT = 128
"""Keys up to which attention is computed in fp32 on a CPU where the model is in bf16 and there is no kernel for it."""


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The formula written out; q [B,H,T,K], k and v [B,Hkv,S,...], mask bool or additive or None (then causal);
    s_aux [H], a logit per head that takes weight and has no value (a sink).

    Returns:
        output [B,T,H,V] and weights [B,H,T,S].
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is None and scores.shape[2] > 1:
        attention_mask = _causal(scores.shape[2], scores.shape[3], scores.device)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    if s_aux is not None:
        scores = torch.cat((scores, s_aux.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)), -1)
    weights = torch.softmax(scores, dim=-1, dtype=state_dtype(query)).to(query.dtype)
    if s_aux is not None:
        weights = weights[..., :-1]
    dropped = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2).contiguous(), weights


def _causal(length: int, total: int, device: torch.device) -> Tensor:
    """What a mask of None means [T, S]: keys from the first query's on, as torch's `is_causal`. Keys behind the
    queries are slots of a static cache that nothing has filled; a single query sees all that there is."""
    seen = torch.ones(length, total, dtype=torch.bool, device=device)
    return seen if length == 1 else seen.tril()


def with_sink(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, sinks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and an additive mask with one key more, whose score is `sinks` [H] and whose value is 0: attention
    over them is attention with sinks, for kernels that know none."""
    batch, heads, length, _ = query.shape
    total, lowest = key.shape[2], torch.finfo(query.dtype).min
    if mask is None:
        mask = _causal(length, total, query.device)[None, None]
    additive = torch.zeros_like(mask, dtype=query.dtype) if mask.dtype == torch.bool else mask
    if bias is not None:
        additive = additive + bias
    if mask.dtype == torch.bool:
        additive = additive.masked_fill(~mask, lowest)
    column = sinks.to(query.dtype)[None, :, None, None].expand(batch, -1, length, 1)
    additive = torch.cat((additive.expand(batch, heads, -1, -1), column), -1)
    return F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1)), additive


class AttentionProduct(nn.Module):
    """softmax(QK^T)V through transformers' AttentionInterface; a module of its own so that its weights can be
    recorded (over a `Band` there are none: nothing is [B, H, T, S])."""

    def __init__(self, config: Any, layer_idx: int, num_heads: int, num_kv_heads: int, head_dim: int, scaling: float):
        super().__init__()
        self.config, self.layer_idx, self.head_dim, self.scaling = config, layer_idx, head_dim, scaling
        self.num_key_value_groups = num_heads // num_kv_heads
        self.is_causal = True

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        band = attention_mask if isinstance(attention_mask, Band) else None
        if band is not None:
            query, key, value, attention_mask = band.fold(query, key, value)
        # vLLM's transformers backend finds a layer by this source: a name assigned from `get_interface`, called once.
        implementation = self._implementation(kwargs)
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        if implementation == "sdpa" and kwargs.get("s_aux") is not None:
            bias, sinks = kwargs.pop("position_bias", None), kwargs.pop("s_aux")
            key, value, attention_mask = with_sink(query, key, value, attention_mask, bias, sinks)
        width = value.shape[-1]
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        torchs = attention_interface is sdpa_attention_forward  # nobody has put another one in its place
        plain = torchs and _plain(query, key, attention_mask, kwargs)
        if plain and has_attention(query, key, value, attention_mask, dtype):
            out = attention(query, key, value, attention_mask, self.scaling, dtype)
            return (out, None) if band is None else (band.unfold(out), None)
        if implementation == "sdpa":
            device = query.device.type
            if device == "cuda" and not torch.compiler.is_compiling():
                query, key, value = (_aligned(x) for x in (query, key, value))
            elif device == "cpu" and query.shape[2] > 1:
                query, key, value = _equally_wide(query, key, value)
        narrow = _narrow_dtype(query) if implementation == "sdpa" else None
        widened = narrow is not None and _short(query, key, attention_mask, kwargs.get("position_bias"))
        if widened:
            query, key, value = query.float(), key.float(), value.float()
        with torch.autocast("cpu", enabled=False) if widened else nullcontext():
            out, weights = attention_interface(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        out = out.to(narrow) if widened else out
        out = out[..., :width] if value.shape[-1] > width else out
        return (out, weights) if band is None else (band.unfold(out), None)

    def _implementation(self, options: dict[str, Any]) -> str:
        """The config's choice; the formula written out where that would refuse, or leave an option out."""
        implementation = attention_implementation(self.config)
        # sdpa has no soft cap, and its kernels no second and no forward-mode derivative.
        if implementation == "sdpa" and (
            options.get("softcap") is not None or forward_mode() or functorch_levels() > 1
        ):
            return "eager"
        if implementation in ("sdpa", "eager"):
            return implementation
        for name, told in (("position_bias", "a bias of the scores"), ("s_aux", "sinks")):
            if uses_flash_attention(self.config) and options.get(name) is not None:
                raise ConfigError(
                    f"attn_implementation: {implementation!r} would not apply {told} of layer {self.layer_idx}; use "
                    "'sdpa' or 'eager'"
                )
        if implementation in CONFIG_READERS:
            self._refuse_what_it_cannot_know(implementation, options)
        return implementation

    def _refuse_what_it_cannot_know(self, implementation: str, options: dict[str, Any]) -> None:
        """An engine that plans its kernels by the config must find there what this layer computes."""
        config = self.config
        sliding = config.layer_kinds[self.layer_idx] in ("sliding_attention", "hybrid_sliding")
        planned = {
            "position_bias": None,
            "sliding_window": config.sliding_window if sliding else None,
            "softcap": config.attn_logit_softcapping,
            "s_aux": None,
        }
        for name, known in planned.items():
            given = options.get(name)
            if given is not known and (isinstance(given, Tensor) or given != known):
                bias = "ALiBi's bias" if config.position == "alibi" else "a bias of the scores"
                told = {"position_bias": bias, "s_aux": "sinks"}.get(name, repr(given))
                raise ConfigError(
                    f"attn_implementation: {implementation!r} would not apply {name} {told} of layer {self.layer_idx}, "
                    "which the config does not say for all layers; use 'sdpa' or 'eager'"
                )


def _equally_wide(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three with heads as wide as the widest. Zeros add nothing, and torch's fused kernel on the CPU takes heads of
    one width alone; for others it makes the scores of all pairs."""
    width = max(key.shape[-1], value.shape[-1])
    query, key, value = (x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
    return query, key, value


def _narrow_dtype(query: Tensor) -> torch.dtype | None:
    """bf16 where a CPU's kernel would compute attention in it, by autocast or for bf16 tensors."""
    if query.device.type != "cpu" or query.dtype == torch.float64:  # which autocast leaves alone
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return dtype if dtype == torch.bfloat16 and not torch.compiler.is_compiling() else None


def _plain(query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> bool:
    """Whether several queries see keys or do not, by a mask or up to their own place, and nothing else is asked for."""
    if not unobserved(query, key, mask):  # a compiler must not see the sizes compared
        return False
    if query.shape[2] == 1 or options.get("dropout") or any(options.get(name) is not None for name in _SPECIAL):
        return False
    sizes = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return mask is None or (
        mask.dim() == 4
        and mask.shape[2:] == sizes[2:]
        and all(given in (1, size) for given, size in zip(mask.shape, sizes, strict=True))
    )


def _short(query: Tensor, key: Tensor, mask: Tensor | None, bias: Tensor | None) -> bool:
    """Whether a training step is faster in fp32: the gradient of torch's kernel for bf16 on the CPU takes two to four
    times as long for rows of 12 to 128 tokens, as long for 256. Without a gradient bf16 is the faster one, but a model
    must be scored as it was trained."""
    plain = bias is None and (mask is None or mask.dtype == torch.bool)
    return plain and query.shape[2] > 1 and key.shape[2] <= SHORT


def _aligned(x: Tensor) -> Tensor:
    """x with rows that begin at multiples of 16 bytes: torch's kernels read so much at once, and choose by the sizes
    alone (keys that are a part of what a cache holds have the strides of the whole). A compiler sees to it itself."""
    unit = 16 // x.element_size()
    if x.stride(-1) == 1 and all(step % unit == 0 for step in (*x.stride()[:-1], x.storage_offset())):
        return x
    return x.contiguous()


def cache_element_bytes(config: Any) -> int:
    """Bytes of one number in a cache of keys and values, which take the activations' dtype."""
    return (config.dtype or torch.float32).itemsize
