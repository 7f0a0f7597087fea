"""RWKV7 "Goose": the delta rule with a vector decay and a removal key of its own (Peng et al. 2025, arXiv 2503.14456).

    d_t = x_{t-1} - x_t,   x^n_t = x_t + d_t * mu_n  (n in r, w, k, v, a, g),   r, k, v = W x^n
    w_t = exp(-e^(-1/2) sigmoid(W_2 tanh(W_1 x^w) + b)),   a_t = sigmoid(low rank(x^a)),   g_t = W_2 sigmoid(W_1 x^g)
    v_t = v_t + (v^1_t - v_t) sigmoid(low rank(x^v)) after the first layer, whose values are v^1
    z_t = unit(k_t * xi),   k_t = k_t * (1 + (a_t - 1) * alpha)
    S_t = diag(w_t) S_{t-1} - (z_t * a_t) (z_t^T S_{t-1}) + k_t v_t^T,   o_t = r_t^T S_t
    y_t = W_o [ (GroupNorm(o_t) + (r_t . (rho * k_t)) v_t) * g_t ]

What is removed (z) and what is written (k) may differ, and every channel decides how much of it is replaced (a).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.compat import is_hooked
from ...ops.delta_rule import dplr_delta_rule
from ...ops.precision import state_dtype
from ...ops.rwkv7 import gated_output, removal_gates, sigmoid_lerp, takes_biases
from ..attention_product import cache_element_bytes
from ..contract import LayerContext, LayerOutput
from ..fp32 import Fp32BiasLinear
from ..layout import SequenceLayout
from ..norms import HeadGroupNorm
from ..plain_linear import is_readable
from ..previous_token import mixed_with_previous
from ..state import LayerState
from .base import MixerCost, divide
from .linear_heads import HeadSizes, LinearHeadsMixer

STREAMS = "rwkvag"
"""Inputs with a token shift of their own: receptance, decay, key, value, replacement rate, gate."""
MIN_LOG_DECAY = -math.exp(-0.5)
FIRST_VALUE = "rwkv7_first_value"
"""The values [B, T, H N] of the first layer, which every later one mixes into its own."""


@options
class RWKV7Options(Options):
    """num_heads: None takes the config's. The ranks are those of the low-rank maps of decay, replacement rate, value
    mix and gate; None: by the width D, the multiple of 32 (at least 32) next to 1.8 sqrt(D), 1.8 sqrt(D), 1.3 sqrt(D)
    and 0.6 D^0.8, which RWKV-LM's training code of early 2025 suggests. Its later versions, and FLA, take 2.5 sqrt(D),
    2.5 sqrt(D), 1.7 sqrt(D) and 5 sqrt(D). `key_eps` is added to the square of a key's length."""

    num_heads: int | None = None
    decay_rank: int | None = None
    rate_rank: int | None = None
    value_rank: int | None = None
    gate_rank: int | None = None
    key_eps: float = 1e-6


class LowRank(nn.Sequential):
    """W_2 act(W_1 x) + b."""

    def __init__(
        self, width: int, rank: int, activation: nn.Module, bias: bool = True, up: type[nn.Linear] = nn.Linear
    ):
        super().__init__(nn.Linear(width, rank, bias=False), activation, up(rank, width, bias=bias))

    def without_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The map without b, and b for whoever adds it for nothing; or the whole map and None."""
        up: Any = self[2]
        readable = is_readable(up) or is_readable(up, Fp32BiasLinear)
        if not readable or is_hooked(self) or not takes_biases(x):
            return self(x), None
        return F.linear(self[1](self[0](x)), up.weight), up.bias

    def init_weights(self, bias: Tensor | None) -> None:
        """W_1 = 0, W_2 orthogonal x 0.1, b as given: at first the map is its bias."""
        up = self[2]
        assert isinstance(self[0], nn.Linear) and isinstance(up, nn.Linear)
        init.zeros_(self[0].weight)
        rows, columns = up.weight.shape
        init.orthogonal_(up.weight, gain=0.1 * max(1.0, columns / rows) ** 0.5)
        if bias is not None:
            init.copy_(up.bias, bias)


@MIXERS.register("rwkv7")
class GeneralizedDeltaTimeMix(LinearHeadsMixer):
    """RWKV7's time mix; `q_proj` makes the receptances."""

    Options = RWKV7Options
    label: ClassVar[str] = "RWKV7"
    state_products: ClassVar[int] = 4  # z^T S, r^T S, and two outer products
    no_weight_decay: ClassVar[tuple[str, ...]] = ("shift_mix", "removal_scale", "rate_scale", "bonus")

    def __init__(self, config: Any, options: RWKV7Options, layer_idx: int):
        super().__init__(config, options, layer_idx)
        width, sizes = config.hidden_size, self.sizes
        self.shift_mix = nn.Parameter(torch.empty(len(STREAMS), width))
        self.removal_scale = nn.Parameter(torch.empty(width))
        self.rate_scale = nn.Parameter(torch.empty(width))
        self.bonus = nn.Parameter(torch.empty(sizes.num_heads, sizes.head_k_dim))
        ranks = self.ranks(config, options)
        self.decay = LowRank(width, ranks["decay_rank"], nn.Tanh(), up=Fp32BiasLinear)
        self.rate = LowRank(width, ranks["rate_rank"], nn.Identity())
        self.gate = LowRank(width, ranks["gate_rank"], nn.Sigmoid(), bias=False)
        is_first = bool(self.publishes(config, options, layer_idx))
        self.value_mix = None if is_first else LowRank(width, ranks["value_rank"], nn.Identity())
        self.o_norm = HeadGroupNorm(sizes.num_heads, sizes.head_v_dim, sizes.head_k_dim * config.norm_eps)

    @classmethod
    def publishes(cls, config: Any, options: Any, layer_idx: int) -> tuple[str, ...]:
        layers = enumerate(config.mixer_specs)
        first = next((index for index, (mixer, _) in layers if issubclass(mixer, cls)), None)
        return (FIRST_VALUE,) if layer_idx == first else ()

    @classmethod
    def needs(cls, config: Any, options: Any, layer_idx: int) -> tuple[str, ...]:
        return () if cls.publishes(config, options, layer_idx) else (FIRST_VALUE,)

    @classmethod
    def head_sizes(cls, config: Any, options: RWKV7Options) -> HeadSizes:
        heads = options.num_heads or config.num_attention_heads
        size = divide(config.hidden_size, heads, "num_attention_heads", "hidden_size")
        return HeadSizes(heads, heads, size, size)

    @classmethod
    def qkv_widths(cls, config: Any, options: Any) -> None:
        """None: each projection has inputs of its own."""

    @classmethod
    def validate(cls, config: Any, options: RWKV7Options) -> None:
        super().validate(config, options)
        for name, rank in cls.ranks(config, options).items():
            if rank < 1:
                raise ConfigError(f"mixer rwkv7: {name} {rank} is not allowed; use an integer >= 1")

    @staticmethod
    def ranks(config: Any, options: RWKV7Options) -> dict[str, int]:
        """The ranks of the low-rank maps, by their options' names."""
        width = config.hidden_size
        targets = {
            "decay_rank": 1.8 * width**0.5,
            "rate_rank": 1.8 * width**0.5,
            "value_rank": 1.3 * width**0.5,
            "gate_rank": 0.6 * width**0.8,
        }
        given = {name: getattr(options, name) for name in targets}
        return {
            name: max(32, 32 * round(target / 32)) if given[name] is None else given[name]
            for name, target in targets.items()
        }

    @classmethod
    def effective(cls, config: Any, options: RWKV7Options) -> dict[str, Any]:
        return {**super().effective(config, options), **cls.ranks(config, options)}

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor | LayerOutput:
        x_r, x_w, x_k, x_v, x_a, x_g = mixed_with_previous(x, self.shift_mix, layout, state)
        # Zero keys make padding a no-op: nothing is removed and nothing written.
        key, value = layout.zero_padding(self.k_proj(x_k)), self.v_proj(x_v)
        first_value = value
        if self.value_mix is not None:
            value = sigmoid_lerp(value, context.values[FIRST_VALUE], *self.value_mix.without_bias(x_v))
        decay, decay_bias = self.decay.without_bias(x_w)
        rate, rate_bias = self.rate.without_bias(x_a)
        log_decay, key, remove, replace_with = removal_gates(
            self.heads(key),
            self.heads(decay.to(state_dtype(x))),
            self.heads(rate),
            self.heads(self.removal_scale),
            self.heads(self.rate_scale),
            MIN_LOG_DECAY,
            self.options.key_eps,
            None if decay_bias is None else self.heads(decay_bias),
            None if rate_bias is None else self.heads(rate_bias),
        )
        receptance, value = self.heads(self.q_proj(x_r)), self.heads(value)
        out = state.advance(
            dplr_delta_rule,
            receptance,
            layout.zero_padding(log_decay),
            key,
            value,
            remove,
            replace_with,
            min_log_decay=MIN_LOG_DECAY,
            layout=layout,
        )
        out = self.o_proj(gated_output(out, receptance, key, value, self.gate(x_g), self.bonus, self.o_norm))
        return LayerOutput(out, {FIRST_VALUE: first_value}) if self.value_mix is None else out

    def heads(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., H, N]."""
        return x.unflatten(-1, (self.sizes.num_heads, -1))

    def cost(self, seq_len: int) -> MixerCost:
        """The state also holds the last token, D numbers."""
        base = super().cost(seq_len)
        return replace(base, state_bytes=base.state_bytes + self.config.hidden_size * cache_element_bytes(self.config))

    def init_weights(self) -> None:
        width, size, depth = self.config.hidden_size, self.sizes.head_k_dim, self.config.num_hidden_layers
        late = self.layer_idx / max(depth - 1, 1)
        early = 1.0 - self.layer_idx / depth
        channel = torch.arange(width, dtype=torch.float32)
        centred = channel / max(width - 1, 1) - 0.5
        zigzag = (channel % size - (size - 1) / 2) / max((size - 1) / 2, 0.5)
        zigzag = zigzag * zigzag.abs()
        powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
        init.copy_(self.shift_mix, torch.stack([1.0 - (channel / width) ** (powers[n] * early) for n in STREAMS]))
        init.copy_(self.removal_scale, 0.71 - 0.1 * centred)
        init.constant_(self.rate_scale, 1.02)
        init.constant_(self.bonus, -0.04)
        ramp = -6.0 + 6.0 * (channel / max(width - 1, 1)) ** (1.0 + late**0.3)
        self.decay.init_weights(ramp + 0.5 + 2.5 * zigzag)
        self.rate.init_weights(-0.19 + 0.3 * zigzag + 0.4 * centred)
        self.gate.init_weights(None)
        if self.value_mix is not None:
            self.value_mix.init_weights(0.73 - 0.4 * centred)
        init.constant_(self.o_norm.weight, ((self.layer_idx + 1) / depth) ** 0.7)
        init.orthogonal_(self.q_proj.weight)
        init.orthogonal_(self.k_proj.weight, gain=0.1)
        init.orthogonal_(self.v_proj.weight)
        init.zeros_(self.o_proj.weight)
