"""Softmax attention: multi-head, grouped-query and multi-query (Vaswani et al. 2017; Shazeer 2019; Ainslie et al.
2023).

    o_t = sum_{j <= t} softmax_j( q_t . k_j / sqrt(K) + bias ) v_j

with any position kind (RoPE, ALiBi, absolute, none), a window `t - w < j <= t`, RMS-normed queries and keys (QK-norm),
and a soft cap `c tanh(s / c)` on the scores. The product itself runs through transformers' AttentionInterface: eager,
sdpa, flex or flash attention.

Options from the literature, each with its formula at the method that computes it: output gates (Qiu et al. 2025, arXiv
2505.06708; with softplus, Laguna), sinks (gpt-oss), exclusive self attention (arXiv 2603.09078; of learned strength,
modded-nanogpt), queries that grow with position (Nakanishi 2025, arXiv 2501.19399; Llama 4), forget gates (Lin et al.
2025, arXiv 2503.02130), NoPE in some layers (Yang et al. 2025, arXiv 2501.18795), value residuals (Zhou et al. 2024,
arXiv 2410.17897), keys and values shared across layers (Brandon et al. 2024, arXiv 2405.12981; by window, Gemma 3n).
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import options
from ...core.registry import MIXERS, POSITIONS
from ..attention_product import AttentionProduct, cache_element_bytes
from ..contract import EMPTY_CONTEXT, LayerContext, LayerOutput
from ..forget_gates import ForgetGate, as_key_features, cache_parts, forget_bias, from_key_features, log_forget
from ..norms import AllHeadsRMSNorm
from ..one_query import STAGES, one_query
from ..plain_linear import project
from .attention_heads import AttentionCall, AttentionHeads, HeadsOptions, config_rotates
from .base import MixerCost
from .kv_sharing import SHARED_KV, check_sharing, names_of_source, plain_name, shared_names, shares
from .windows import Windowed, tokens_kept

FIRST_VALUE = "first_value"
"""What the first layer with a value residual publishes: its values [B, T, Hkv, V]."""

_SIZES = (
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "qkv_bias",
    "out_bias",
    "rope_theta",
    "position",
    "scale",
    "qk_norm",
    "qk_norm_eps",
    "qk_norm_over",
)
"""Options of which a plain step takes every value, or that the rest shows."""


@options
class AttentionOptions(HeadsOptions):
    """None takes the config's value: heads, KV heads, head_dim, bias, window (0 = none), soft cap, RoPE parameters.
    `scale`: of the scores, None = 1 / sqrt(head_dim). `temperature`: s of the growth of queries with position, None =
    without; `temperature_step`: tokens of one step of it. `position`: "rope" or "none" (NoPE) in place of the config's.
    `output_gate`: a gate of each feature or each head, `gate_activation` of its logits. `sinks`: a learned logit per
    head that takes weight. `exclusive`: take out of each head's output what lies along the token's own value;
    `exclusive_strength`: all of it, or a learned share per head and token. `forget_gate`: scores decay by a gate per
    head and token. `value_residual`: mix values with those of the first such layer, evenly or by learned weights. `kv`:
    "shared" takes the keys and values of the last layer before it that has its "own", "shared_by_window" those of the
    last one with its window.
    `qk_norm_over`: "all" norms the heads of a query or key together (OLMo 2).
    """

    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    temperature: float | None = None
    temperature_step: int = 8192
    rope_theta: float | int | None = None
    position: Literal["rope", "none"] | None = None
    output_gate: Literal["none", "elementwise", "headwise"] = "none"
    gate_activation: Literal["sigmoid", "softplus"] = "sigmoid"
    sinks: bool = False
    exclusive: bool = False
    exclusive_strength: Literal["full", "learned"] = "full"
    forget_gate: bool = False
    value_residual: Literal["none", "mean", "learned"] = "none"
    kv: Literal["own", "shared", "shared_by_window"] = "own"
    qk_norm_over: Literal["head", "all"] = "head"


@MIXERS.register("attention")
class Attention(Windowed, AttentionHeads):
    """Grouped-query softmax attention; KV heads from 1 (MQA) to the number of heads (MHA).

    A subclass may override the stages of `AttentionHeads` and `scores`, one at a time; the softmax product itself is
    the module `product`.
    """

    Options = AttentionOptions
    config_features: ClassVar[tuple[str, ...]] = (
        *("attention_bias", "qk_norm", "sliding_window", "attn_logit_softcapping", "attention_dropout"),
        *("position", "rope_parameters"),
    )
    no_weight_decay: ClassVar[tuple[str, ...]] = ("sinks", "value_mix")

    def __init__(self, config: Any, options: AttentionOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        if shares(options):
            del self.k_proj, self.v_proj
            self.k_norm = None
        self.attention_window = self.window(config, options)
        self.published_names = self.publishes(config, options, layer_idx)
        self.source_names = names_of_source(config, options)
        self.softcap = config.attn_logit_softcapping if options.softcap is None else options.softcap
        if options.output_gate != "none":
            gates = self.num_heads * (self.head_dim if options.output_gate == "elementwise" else 1)
            self.g_proj = nn.Linear(config.hidden_size, gates, bias=False)
        if options.exclusive_strength == "learned":
            self.strength_proj = nn.Linear(config.hidden_size, self.num_heads, bias=False)
        if options.forget_gate:
            self.f_proj = ForgetGate(config.hidden_size, self.num_heads)
        self.sinks = nn.Parameter(torch.empty(self.num_heads)) if options.sinks else None
        learned = options.value_residual == "learned" and bool(self.needs(config, options, layer_idx))
        self.value_mix = nn.Parameter(torch.empty(2)) if learned else None
        self.product = AttentionProduct(
            config, layer_idx, self.num_heads, self.num_kv_heads, self.head_dim, self.scale(config, options)
        )

        changed = any(getattr(type(self), stage) is not getattr(Attention, stage) for stage in STAGES)
        usual = AttentionOptions()
        same = replace(options, **{name: getattr(usual, name) for name in _SIZES}) == usual
        self.attends_plainly = same and not (changed or self.published_names)

    def head_norm(self, num_heads: int, eps: float) -> nn.Module:
        if self.options.qk_norm_over == "all":
            return AllHeadsRMSNorm(num_heads, self.head_dim, eps)
        return super().head_norm(num_heads, eps)

    @classmethod
    def scale(cls, config: Any, options: AttentionOptions) -> float:
        return super().scale(config, options) if options.scale is None else options.scale

    @classmethod
    def rotates(cls, config: Any, options: AttentionOptions) -> bool:
        return config_rotates(config, options.position)

    @classmethod
    def validate(cls, config: Any, options: AttentionOptions) -> None:
        super().validate(config, options)
        if options.scale is not None and not 0 < options.scale < inf:  # torch's fused product gives NaN then
            raise ConfigError(f"scale: {options.scale!r} is not allowed; use a number above 0, or None for the usual")
        if options.softcap is not None and not 0 <= options.softcap < inf:
            raise ConfigError(f"softcap: {options.softcap!r} is not allowed; use a number above 0, or None for no cap")
        window = cls.window(config, options)
        if window is not None and window < 0:
            raise ConfigError(
                f"sliding_window: {window} is not allowed; use a number of tokens >= 1, or 0 for no window"
            )
        for name, idle, switch, off in (
            ("gate_activation", "sigmoid", "output_gate", "none"),
            ("exclusive_strength", "full", "exclusive", False),
            ("temperature_step", 8192, "temperature", None),
        ):
            if getattr(options, name) != idle and getattr(options, switch) == off:
                raise ConfigError(
                    f"{name}: {getattr(options, name)!r} would have no effect with {switch} {off!r}; use {idle!r}"
                )
        if options.temperature is not None and not 0 < options.temperature < inf:
            raise ConfigError(f"temperature: {options.temperature} is not allowed; use a number above 0, or None")
        if options.temperature_step < 1:
            raise ConfigError(f"temperature_step: {options.temperature_step} is not allowed; use 1 token or more")
        if shares(options):
            cls._check_shared(options)
            check_sharing(config)
        if options.qk_norm_over == "all":
            if cls.norm_eps(config, options) is None:
                raise ConfigError(
                    "qk_norm_over: 'all' would have no effect without QK-norm; set qk_norm, or use 'head'"
                )
            if cls.head_norm is not Attention.head_norm or config.norm == "rmsnorm_offset":
                raise ConfigError(
                    f"qk_norm_over: 'all' is not supported by {cls.__name__} with norm {config.norm!r}; use 'head'"
                )
        if options.value_residual != "none":
            layers = _value_layers(config)
            if len(layers) < 2:
                raise ConfigError(
                    f"value_residual: {options.value_residual!r} would have no effect in a single layer; give it to at "
                    "least two, or 'none'"
                )
            first, first_options = config.mixer_specs[layers[0]]
            if first.sizes(config, first_options)[1:] != cls.sizes(config, options)[1:]:
                raise ConfigError(
                    f"value_residual: {options.value_residual!r} needs as many KV heads and as large ones in all such "
                    f"layers; layer {layers[0]} has {first.sizes(config, first_options)[1:]}, another "
                    f"{cls.sizes(config, options)[1:]}"
                )

    @classmethod
    def _check_shared(cls, options: AttentionOptions) -> None:
        """Raise a ConfigError where something needs keys or values of the layer's own."""
        for name, idle in (("forget_gate", False), ("value_residual", "none")):
            if getattr(options, name) != idle:
                raise ConfigError(
                    f"{name}: {getattr(options, name)!r} needs keys and values of the layer's own; use kv 'own', or "
                    f"{idle!r}"
                )
        for stage in ("project", "kept"):
            if getattr(cls, stage) is not getattr(Attention, stage):
                raise ConfigError(
                    f"kv: {options.kv!r} is not supported by {cls.__name__}, whose {stage} is its own; use 'own'"
                )

    @classmethod
    def needs_key_positions(cls, config: Any, options: AttentionOptions) -> bool:
        return options.forget_gate or cls.scores is not Attention.scores

    @classmethod
    def fills_cache(cls, config: Any, options: AttentionOptions) -> bool:
        return not shares(options)

    @classmethod
    def qkv_widths(cls, config: Any, options: AttentionOptions) -> tuple[int, int, int] | None:
        return None if shares(options) else super().qkv_widths(config, options)

    @classmethod
    def publishes(cls, config: Any, options: AttentionOptions, layer_idx: int) -> tuple[str, ...]:
        has = options.value_residual != "none"
        names = (FIRST_VALUE,) if has and layer_idx == _value_layers(config)[0] else ()
        return (*names, *shared_names(config, layer_idx))

    @classmethod
    def needs(cls, config: Any, options: AttentionOptions, layer_idx: int) -> tuple[str, ...]:
        if shares(options):
            return names_of_source(config, options)
        has = options.value_residual != "none"
        return (FIRST_VALUE,) if has and layer_idx != _value_layers(config)[0] else ()

    @classmethod
    def tensor_parallel(cls, config: Any, options: AttentionOptions) -> dict[str, str]:
        if options.sinks or options.forget_gate or options.value_residual != "none" or options.qk_norm_over == "all":
            return {}  # parameters of all heads that no projection brings, or norms over all of them
        if POSITIONS.get(config.position, "position").bias and options.position is None:
            return {}  # ALiBi's slopes are those of all heads
        plan = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "o_proj": "rowwise"}
        if options.output_gate != "none":
            plan["g_proj"] = "colwise"
        if options.exclusive_strength == "learned":
            plan["strength_proj"] = "colwise"
        if shares(options):
            plan = {name: style for name, style in plan.items() if name not in ("k_proj", "v_proj")}
        if cls.norm_eps(config, options) is not None:
            plan |= {"q_norm": "replicated_with_grad_allreduce", "k_norm": "replicated_with_grad_allreduce"}
        return plan

    @classmethod
    def effective(cls, config: Any, options: AttentionOptions) -> dict[str, Any]:
        return {
            **super().effective(config, options),
            "position": None if cls.rotates(config, options) or options.position is None else options.position,
            "window": cls.window(config, options),
            "softcap": config.attn_logit_softcapping if options.softcap is None else options.softcap,
        }

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor | LayerOutput:
        if (
            context.row is not None
            and self.attends_plainly
            and (heads := one_query(self, hidden_states, context)) is not None
        ):
            return project(self.o_proj, heads, context.row)
        if not shares(self.options):
            return super().forward(hidden_states, context)
        query = self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim))
        key, values, value = (context.values[name].transpose(1, 2) for name in self.source_names)
        query = self.placed(query, self.q_norm, context)
        heads = self.attend(AttentionCall(query, key, values, None, hidden_states, context))
        return self.read_out(heads, hidden_states, value)

    def published(self, keys: Tensor, values: Tensor, value: Tensor) -> dict[str, Tensor]:
        if not self.published_names:
            return {}
        made = {FIRST_VALUE: value, **dict(zip(SHARED_KV, (keys, values, value), strict=True))}
        return {name: made[plain_name(name)].transpose(1, 2) for name in self.published_names}

    def project(self, hidden_states: Tensor, context: LayerContext) -> tuple[Tensor, Tensor, Tensor]:
        """As AttentionHeads'; with a value residual v <- (v + v_first) / 2, or c_1 v_first + c_2 v."""
        query, key, value = super().project(hidden_states, context)
        if FIRST_VALUE in context.values:
            first = context.values[FIRST_VALUE].transpose(1, 2)
            mix = self.value_mix
            value = (value + first) / 2 if mix is None else mix[0] * first + mix[1] * value
        return query, key, value

    def kept(self, hidden_states: Tensor, key: Tensor, context: LayerContext) -> Tensor | None:
        if not self.options.forget_gate:
            return None
        gates = log_forget(self.f_proj(hidden_states), self.keys(hidden_states, context))
        return as_key_features(gates, self.num_kv_heads, key.dtype)

    def scores(self, query: Tensor, key: Tensor, context: LayerContext) -> Tensor | None:
        """A bias to add to the scores, [B or 1, H, T, S], or None; of one's own in a subclass, from `context.keys`
        (see KeyPositions), which the decoder makes for layers that override this.

        Args:
            query: [B, H, T, K]. key: [B, Hkv, S, K], the cached ones included.
        """
        return None

    def warmed(self, query: Tensor, context: LayerContext) -> Tensor:
        """temperature: q_t (1 + s log(1 + floor((t + 1) / step))), t the position in the document; [B, H, T, K]."""
        if self.options.temperature is None:
            return query
        positions = context.position_ids
        if positions is None:
            positions = torch.arange(query.shape[2], device=query.device)[None]
        steps = torch.div(positions.float() + 1, self.options.temperature_step, rounding_mode="floor")
        growth = 1 + self.options.temperature * torch.log1p(steps)
        return query * growth[:, None, :, None].to(query.dtype)

    def attend(self, call: AttentionCall) -> Tensor:
        query, key, value, kept = self.warmed(call.query, call.context), call.key, call.value, call.kept
        hidden_states, context = call.hidden_states, call.context
        biases = [context.position_bias, self.scores(query, key, context)]
        if kept is not None:
            biases.append(forget_bias(from_key_features(kept), self.keys(hidden_states, context).slots))
        given = [bias for bias in biases if bias is not None]
        if given and not (len(given) == 1 and given[0] is context.position_bias):
            given = [sum(given[1:], given[0]).to(query.dtype).expand(query.shape[0], self.num_heads, -1, -1)]
        sinks = {} if self.sinks is None else {"s_aux": self.sinks}
        out, _ = self.product(
            query,
            key,
            value,
            context.attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            sliding_window=self.attention_window,
            softcap=self.softcap,
            position_bias=given[0] if given else None,
            position_ids=context.position_ids,
            **sinks,
            **context.attention_kwargs,
        )
        return out

    def read_out(self, out: Tensor, hidden_states: Tensor, value: Tensor) -> Tensor:
        """exclusive: o - c (o . v) v / |v|^2 with the token's own v, c = 1 or tanh(W_c x) of each head; output_gate:
        sigmoid(W_g x) * o, or softplus; then W_o o."""
        if self.options.exclusive:
            own = self.per_query_head(value).transpose(1, 2)
            square = own.square().sum(-1, keepdim=True).clamp(min=1e-8)
            along = (out * own).sum(-1, keepdim=True) / square
            if self.options.exclusive_strength == "learned":
                along = along * torch.tanh(self.strength_proj(hidden_states)).unsqueeze(-1)
            out = out - along * own
        if self.options.output_gate != "none":
            logits = self.g_proj(hidden_states)
            soft = self.options.gate_activation == "softplus"
            gate = F.softplus(logits.float()).to(out.dtype) if soft else torch.sigmoid(logits)
            out = out * gate.unflatten(-1, (out.shape[2], -1))
        return super().read_out(out, hidden_states, value)

    def init_weights(self) -> None:
        if self.sinks is not None:
            init.normal_(self.sinks, mean=0.0, std=self.config.initializer_range)
        if self.value_mix is not None:
            init.constant_(self.value_mix, 0.5)

    def cost(self, seq_len: int) -> MixerCost:
        """4 H K FLOPs a pair of tokens, over the whole square of T T pairs, as the kernels' counters have it; a step
        over T cached tokens has T + 1 pairs. 2 Hkv K numbers of cache a token, and H with forget gates; with a window
        w of w - 1 tokens at most, and nothing where keys and values are shared.
        """
        kept = tokens_kept(seq_len, self.attention_window)
        itemsize = cache_element_bytes(self.config)
        gates = self.num_heads * cache_parts(itemsize) * itemsize if self.options.forget_gate else 0
        return MixerCost(
            mixing_flops=self.pair_flops() * seq_len * seq_len,
            decode_flops=self.pair_flops() * (kept + 1),
            state_bytes=0 if shares(self.options) else self.cache_bytes(kept) + kept * gates,
        )

    def pair_flops(self) -> int:
        """Of the score and the weighted value of a token and a key, all heads."""
        return 4 * self.num_heads * self.head_dim


def _value_layers(config: Any) -> list[int]:
    """The layers with a value residual."""
    return [
        index
        for index, (mixer, given) in enumerate(config.mixer_specs)
        if issubclass(mixer, Attention) and given.value_residual != "none"
    ]
