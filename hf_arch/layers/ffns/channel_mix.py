"""RWKV's channel mix (Peng et al. 2023, arXiv 2305.13048; Peng et al. 2024, arXiv 2404.05892).

    d_t = x_{t-1} - x_t,   k_t = relu(W_k (x_t + d_t * mu_k))^2,   y_t = sigmoid(W_r (x_t + d_t * mu_r)) * W_v k_t

A feed-forward network that also sees the token before, which the cache keeps in a convolution state of the layer.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.options import Options, options
from ...core.registry import ACTIVATIONS, FFNS
from ...ops.squared_relu import squared_relu, squared_relu_between
from ..attention_product import cache_element_bytes
from ..contract import EMPTY_CONTEXT, LayerContext
from ..initial import FLA
from ..mixers.base import MixerCost
from ..plain_linear import is_readable, project
from ..previous_token import mixed_with_previous
from ..state import FFN_STATE
from .ffn import FeedForward


@options
class ChannelMixOptions(Options):
    """intermediate_size: None takes the config's, else 3.5x rounded up to a multiple of 32. `use_receptance`: the
    sigmoid gate, which RWKV7 drops."""

    intermediate_size: int | None = None
    hidden_act: str = "relu2"
    use_receptance: bool = True


@FFNS.register("channel_mix")
class ChannelMix(FeedForward):
    """RWKV's token-shifted feed-forward."""

    Options = ChannelMixOptions
    needs_conv_state: ClassVar[bool] = True
    label: ClassVar[str] = "ChannelMix"
    inits: ClassVar = {**FLA, "official": "RWKV-LM's: shifts by channel and depth, output and receptance 0"}

    def __init__(self, config: Any, options: ChannelMixOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        width, inner = config.hidden_size, self.width(config, options)
        self.key_mix = nn.Parameter(torch.empty(width))
        self.key_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        if options.use_receptance:
            self.receptance_mix = nn.Parameter(torch.empty(width))
            self.receptance_proj = nn.Linear(width, width, bias=False)
        self.act_fn = ACTIVATIONS.get(options.hidden_act, "hidden_act")

    @classmethod
    def default_intermediate_size(cls, config: Any) -> int:
        return 32 * -(-int(3.5 * config.hidden_size) // 32)

    def forward(self, hidden_states: Tensor, context: LayerContext = EMPTY_CONTEXT) -> Tensor:
        layout, state = context.layout, context.state(self.layer_idx)
        x = layout.compact(hidden_states)
        mixes = (self.key_mix, self.receptance_mix) if self.options.use_receptance else (self.key_mix,)
        key, *receptance = mixed_with_previous(x, torch.stack(mixes), layout, state, FFN_STATE)
        out = self._fed(key)
        if self.options.use_receptance:
            out = self.receptance_proj(*receptance).sigmoid() * out
        return layout.restore(out)

    def _fed(self, x: Tensor) -> Tensor:
        """W_v act(W_k x)."""
        up, down = self.key_proj, self.down_proj
        readable = torch.is_grad_enabled() and is_readable(up) and is_readable(down)
        if self.act_fn is squared_relu and readable and up.bias is down.bias is None:
            return squared_relu_between(x, up.weight, down.weight)
        return project(down, self.act_fn(project(up, x)))

    def cost(self, seq_len: int) -> MixerCost:
        return MixerCost(state_bytes=self.config.hidden_size * cache_element_bytes(self.config))

    def init_weights(self) -> None:
        official = self.init_policy == "official"
        channel = torch.arange(self.config.hidden_size, dtype=torch.float32) / self.config.hidden_size
        early = 1.0 - self.layer_idx / self.config.num_hidden_layers
        mix = 1.0 - channel**early if official else torch.zeros_like(channel)
        init.copy_(self.key_mix, mix)
        if self.options.use_receptance:
            init.copy_(self.receptance_mix, mix)
        if official:
            init.orthogonal_(self.key_proj.weight)
            init.zeros_(self.down_proj.weight)
            if self.options.use_receptance:
                init.zeros_(self.receptance_proj.weight)
