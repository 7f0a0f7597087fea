"""RWKV7's channel mix (Peng et al. 2025, arXiv 2503.14456): RWKV6's without the receptance, of 4x, and its init.

d_t = x_{t-1} - x_t,   y_t = W_v relu(W_k (x_t + d_t * mu))^2
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import initialization as init

from ...core.options import options
from ...core.registry import FFNS
from ..initial import FLA
from .channel_mix import ChannelMix, ChannelMixOptions


@options
class ChannelMix7Options(ChannelMixOptions):
    """intermediate_size: None takes the config's, else 4x rounded up to a multiple of 32."""

    use_receptance: bool = False


@FFNS.register("channel_mix7")
class ChannelMix7(ChannelMix):
    """RWKV7's token-shifted feed-forward."""

    Options = ChannelMix7Options
    label: ClassVar[str] = "ChannelMix7"
    inits: ClassVar = FLA

    @classmethod
    def default_intermediate_size(cls, config: Any) -> int:
        return 32 * -(-4 * config.hidden_size // 32)

    def init_weights(self) -> None:
        super().init_weights()
        width, depth = self.config.hidden_size, self.config.num_hidden_layers
        channel = torch.arange(width, dtype=torch.float32) / width
        init.copy_(self.key_mix, 1.0 - channel ** ((1.0 - self.layer_idx / depth) ** 4))
        init.orthogonal_(self.key_proj.weight)
        init.zeros_(self.down_proj.weight)
