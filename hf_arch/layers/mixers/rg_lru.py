"""RG-LRU: Griffin's gated linear recurrence with a number of state a channel (De et al. 2024, arXiv 2402.19427).

    x_t = conv(W_x u_t + b_x),   r_t = sigmoid(A_r x_t + b_r),   i_t = sigmoid(A_i x_t + b_i)
    log a_t = -8 softplus(Lambda) r_t,   h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t)
    y_t = W_o [ h_t * act(W_y u_t + b_y) ] + b_o

with A_r and A_i block-diagonal, a block a head. The first token of a document is taken in whole: its factor is 1 in
place of sqrt(1 - a^2).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import ACTIVATIONS, MIXERS
from ...ops.elementwise import hgrn_scan
from ...ops.precision import state_dtype
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..short_conv import ShortConvolution
from ..state import LayerState
from .base import CacheKind, MixerCost, RecurrentMixer, divide

STRENGTH = 8.0
"""c of the paper: how fast the fastest channel forgets."""


@options
class RGLRUOptions(Options):
    """num_heads: blocks of the gates' matrices, None takes the config's. width: channels of the recurrence, None =
    hidden_size. decay_min, decay_max: range of the initial a at an open gate."""

    num_heads: int | None = None
    width: int | None = None
    conv_size: int = 4
    gate_activation: str = "gelu_tanh"
    decay_min: float = 0.9
    decay_max: float = 0.999


class BlockLinear(nn.Module):
    """y = A x + b with A [H, W, W] a block for each of H parts of the last axis: [..., H W] -> [..., H W]."""

    def __init__(self, blocks: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, size, size))
        self.bias = nn.Parameter(torch.empty(blocks, size))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.bias.shape[0], -1))
        return (torch.einsum("bthi,hij->bthj", parts, self.weight) + self.bias).flatten(-2)


@MIXERS.register("rg_lru")
class RealGatedLRU(RecurrentMixer):
    """Griffin's recurrent block."""

    Options = RGLRUOptions
    cache_kind: ClassVar[CacheKind] = "recurrent+conv"
    label: ClassVar[str] = "RGLRU"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("decay",)
    keep_fp32: ClassVar[tuple[str, ...]] = ("decay",)

    def __init__(self, config: Any, options: RGLRUOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        hidden, (heads, width) = config.hidden_size, self.sizes(config, options)
        self.inner = width
        self.x_proj = nn.Linear(hidden, width)
        self.y_proj = nn.Linear(hidden, width)
        self.conv = ShortConvolution(width, options.conv_size, bias=True, activation=None)
        self.input_gate = BlockLinear(heads, width // heads)
        self.recurrence_gate = BlockLinear(heads, width // heads)
        self.decay = nn.Parameter(torch.empty(width))
        self.o_proj = nn.Linear(width, hidden)
        self.act_fn = ACTIVATIONS.get(options.gate_activation, "gate_activation")

    @classmethod
    def sizes(cls, config: Any, options: RGLRUOptions) -> tuple[int, int]:
        """(blocks, channels)."""
        return options.num_heads or config.num_attention_heads, options.width or config.hidden_size

    @classmethod
    def validate(cls, config: Any, options: RGLRUOptions) -> None:
        heads, width = cls.sizes(config, options)
        divide(width, heads, "num_heads", "width")
        ACTIVATIONS.get(options.gate_activation, "gate_activation")
        if options.conv_size < 1:
            raise ConfigError(f"mixer rg_lru: conv_size {options.conv_size} is not allowed; use an integer >= 1")
        if not 0 < options.decay_min < options.decay_max < 1:
            raise ConfigError(
                f"mixer rg_lru: decay_min {options.decay_min} and decay_max {options.decay_max} are not allowed; use "
                "0 < decay_min < decay_max < 1"
            )

    @classmethod
    def effective(cls, config: Any, options: RGLRUOptions) -> dict[str, Any]:
        heads, width = cls.sizes(config, options)
        values = {**super().effective(config, options), "num_heads": heads, "width": width}
        return {name: value for name, value in values.items() if name not in ("decay_min", "decay_max")}

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        hidden = self.conv(layout.zero_padding(self.x_proj(x)), layout, state)
        dtype = state_dtype(x)
        held = state.recurrent()
        counted, state_before = (None, None) if held is None else (held[..., -1:], held[..., :-1])
        # How many tokens of its document each one is behind, itself counted: the scan itself knows where they begin.
        valid = layout.zero_padding(torch.ones_like(hidden[..., :1], dtype=dtype))
        further: dict[str, Any] = {"segment_ids": layout.segment_ids, "output_final_state": bool(state)}
        number, last = hgrn_scan(valid, torch.ones_like(valid), initial_state=counted, **further)
        rate = F.softplus(self.decay.to(dtype))
        log_decay = -STRENGTH * layout.zero_padding(self.recurrence_gate(hidden).to(dtype).sigmoid()) * rate
        kept = (-torch.expm1(2 * log_decay)).clamp(min=torch.finfo(dtype).tiny).sqrt()
        taken_in = torch.where(number == 1, torch.ones_like(kept), kept)
        inputs = layout.zero_padding(taken_in * (self.input_gate(hidden).sigmoid() * hidden).to(dtype))
        out, final = hgrn_scan(inputs, log_decay.exp(), initial_state=state_before, **further)
        state.write_recurrent(None if final is None or last is None else torch.cat((final, last), -1))
        return self.o_proj(out.to(x.dtype) * self.act_fn(self.y_proj(x)))

    def cost(self, seq_len: int) -> MixerCost:
        """The two gates' blocks, 4 E E / H FLOPs a token, and the convolution; E + 1 fp32 numbers and the window."""
        blocks = self.input_gate.weight
        per_token = 4 * blocks.numel() + self.conv.flops(1)
        window = self.conv.state_bytes(cache_element_bytes(self.config))
        return MixerCost(per_token * seq_len, per_token, 4 * (self.inner + 1) + window)

    def init_weights(self) -> None:
        for gate in (self.input_gate, self.recurrence_gate):
            init.normal_(gate.weight, mean=0.0, std=(0.01 / gate.weight.shape[-1]) ** 0.5)
            init.zeros_(gate.bias)
        low, high = self.options.decay_min**2, self.options.decay_max**2
        drawn = torch.empty_like(self.decay, dtype=torch.float32).uniform_(low, high)
        # a^c with softplus(Lambda) = -log a: what is drawn is a^2, an even density on the disc of radius 1.
        init.copy_(self.decay, torch.log(torch.expm1(-0.5 * drawn.log())))
