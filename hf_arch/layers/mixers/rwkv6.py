"""RWKV6 "Finch": linear attention with a data-dependent decay and token shift (Peng et al. 2024, arXiv 2404.05892).

    d_t = x_{t-1} - x_t,   m_t = tanh(W_1 (x_t + d_t * mu)) W_2 + b,   x^n_t = x_t + d_t * m^n_t  (n in r, w, k, v, g)
    w_t = exp(-exp(W_b tanh(W_a x^w_t) + b_w)),   r, k, v, g = W x^n
    o_t = r_t^T (S_{t-1} + diag(u) k_t v_t^T),   S_t = diag(w_t) S_{t-1} + k_t v_t^T
    y_t = W_o [ GroupNorm(o_t) * silu(g_t) ]

A receptance r reads the state of earlier tokens; the present one is weighed by the bonus u.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.linear_attention import linear_attention
from ...ops.precision import state_dtype
from ...ops.silu_gate import silu_gated
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..fp32 import Fp32BiasLinear
from ..initial import FLA
from ..layout import SequenceLayout
from ..norms import HeadGroupNorm
from ..previous_token import previous_token
from ..state import LayerState
from .base import MixerCost
from .linear_heads import LinearHeadsMixer, repeat_kv_heads

STREAMS = "rwkvg"
"""The five inputs that are shifted by amounts of their own: receptance, decay, key, value, gate."""


@options
class RWKV6Options(Options):
    """num_heads and num_kv_heads: None takes the config's; shift_rank and decay_rank: of the low-rank maps that make
    the token shifts and the decays."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    expand_k: float | int = 0.5
    expand_v: float | int = 1.0
    shift_rank: int = 32
    decay_rank: int = 64


@MIXERS.register("rwkv6")
class DynamicTimeMix(LinearHeadsMixer):
    """RWKV6's time mix; `q_proj` makes the receptances."""

    Options = RWKV6Options
    label: ClassVar[str] = "RWKV6"
    inits: ClassVar = {
        **FLA,
        "official": "RWKV-LM's: decays 0.9975 to 0.692, shifts and bonus by channel and depth, outputs 0",
    }
    no_weight_decay: ClassVar[tuple[str, ...]] = ("shift_bias", "bonus")

    def __init__(self, config: Any, options: RWKV6Options, layer_idx: int):
        super().__init__(config, options, layer_idx)
        width, sizes = config.hidden_size, self.sizes
        self.shift_mix = nn.Parameter(torch.empty(width))
        self.shift_down = nn.Linear(width, len(STREAMS) * options.shift_rank, bias=False)
        self.shift_up = nn.Parameter(torch.empty(len(STREAMS), options.shift_rank, width))
        self.shift_bias = nn.Parameter(torch.empty(len(STREAMS), width))
        self.decay_down = nn.Linear(width, options.decay_rank, bias=False)
        self.decay_up = Fp32BiasLinear(options.decay_rank, sizes.kv_key_dim)
        self.g_proj = nn.Linear(width, sizes.value_dim, bias=False)
        self.bonus = nn.Parameter(torch.empty(sizes.num_heads, sizes.head_k_dim))
        self.o_norm = HeadGroupNorm(sizes.num_heads, sizes.head_v_dim, config.norm_eps)

    @classmethod
    def qkv_widths(cls, config: Any, options: Any) -> None:
        """None: each projection has inputs of its own."""

    @classmethod
    def validate(cls, config: Any, options: RWKV6Options) -> None:
        super().validate(config, options)
        for name in ("shift_rank", "decay_rank"):
            if getattr(options, name) < 1:
                raise ConfigError(f"mixer rwkv6: {name} {getattr(options, name)} is not allowed; use an integer >= 1")

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        before = previous_token(x, layout, state)
        x_r, x_w, x_k, x_v, x_g = self.shifted(x, before - x)
        q, k, v = self.sizes.split(self.q_proj(x_r), layout.zero_padding(self.k_proj(x_k)), self.v_proj(x_v))
        decay = -torch.exp(self.decay_up(torch.tanh(self.decay_down(x_w))).to(state_dtype(x)))
        decay = layout.zero_padding(decay).unflatten(-1, (self.sizes.num_kv_heads, self.sizes.head_k_dim))
        out = state.advance(
            linear_attention, q, k, v, repeat_kv_heads(self.sizes, decay), bonus=self.bonus, scale=1.0, layout=layout
        )
        return self.o_proj(silu_gated(self.o_norm(out), self.g_proj(x_g)))

    def shifted(self, x: Tensor, delta: Tensor) -> tuple[Tensor, ...]:
        """The five inputs x + delta * m, each [B, T, D]."""
        low = torch.tanh(self.shift_down(torch.addcmul(x, delta, self.shift_mix)))
        low = low.unflatten(-1, (len(STREAMS), -1)).movedim(2, 0).flatten(1, 2)  # [5, B T, R]
        amounts = torch.baddbmm(self.shift_bias.unsqueeze(1).to(low.dtype), low, self.shift_up.to(low.dtype))
        return tuple(torch.addcmul(x, delta, amount.view_as(x)) for amount in amounts.unbind(0))

    def cost(self, seq_len: int) -> MixerCost:
        """10 R D FLOPs a token for the five mixes of rank R; the state also holds the last token, D numbers."""
        base, shift = super().cost(seq_len), 2 * self.shift_up.numel()
        return MixerCost(
            mixing_flops=base.mixing_flops + shift * seq_len,
            decode_flops=base.decode_flops + shift,
            state_bytes=base.state_bytes + self.config.hidden_size * cache_element_bytes(self.config),
        )

    def init_weights(self) -> None:
        if self.init_policy == "official":
            self._init_officially()
            return
        for parameter in (self.shift_mix, self.shift_bias, self.bonus, self.decay_down.weight, self.decay_up.bias):
            init.zeros_(parameter)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.o_proj, self.shift_down):
            init.xavier_uniform_(linear.weight, gain=2**-2.5)
        # As one [5 R, D] matrix, the way the reference holds it.
        fan_in, rank, fan_out = self.shift_up.shape
        bound = 2**-2.5 * (6 / (fan_in * rank + fan_out)) ** 0.5
        init.uniform_(self.shift_up, -bound, bound)
        rows, columns = self.decay_up.weight.shape
        init.orthogonal_(self.decay_up.weight, gain=0.1 * max(1.0, columns / rows) ** 0.5)

    def _init_officially(self) -> None:
        """As RWKV-LM's x060: by channel and depth, so that layers begin with different memories."""
        depth, width = self.config.num_hidden_layers, self.config.hidden_size
        late, early = self.layer_idx / max(depth - 1, 1), 1.0 - self.layer_idx / depth
        channel = torch.arange(width, dtype=torch.float32) / width
        shifts = dict.fromkeys("wk", 1.0 - channel**early)
        shifts["v"] = 1.0 - (channel**early + 0.3 * late)
        shifts["r"] = shifts["g"] = 1.0 - channel ** (0.5 * early)
        init.copy_(self.shift_mix, 1.0 - channel**early)
        init.copy_(self.shift_bias, torch.stack([shifts[name] for name in STREAMS]))
        init.zeros_(self.shift_down.weight)
        init.zeros_(self.decay_down.weight)
        for small in (self.shift_up, self.decay_up.weight):
            init.uniform_(small, -0.01, 0.01)
        keys = torch.arange(self.decay_up.bias.numel(), dtype=torch.float32)
        init.copy_(self.decay_up.bias, -6.0 + 5.0 * (keys / max(keys.numel() - 1, 1)) ** (0.7 + 1.3 * late))
        place = torch.arange(self.bonus.numel(), dtype=torch.float32)
        zigzag = ((place + 1) % 3 - 1) * 0.1
        ramp = late * (1.0 - place / max(place.numel() - 1, 1))
        init.copy_(self.bonus, (ramp + zigzag).view_as(self.bonus))
        for linear, gain in ((self.q_proj, 1.0), (self.k_proj, 0.1), (self.v_proj, 1.0), (self.g_proj, 0.1)):
            init.orthogonal_(linear.weight, gain=gain)
        init.zeros_(self.o_proj.weight)
        init.constant_(self.o_norm.weight, ((self.layer_idx + 1) / depth) ** 0.7)
