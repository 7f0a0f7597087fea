"""Multi-scale retention (Sun et al. 2023, RetNet, arXiv 2307.08621).

    S_t = gamma_h S_{t-1} + k_t v_t^T,   o_t = (q_t / sqrt(K))^T S_t,   gamma_h = 1 - 2^(-5-h)
    y_t = W_o [ RMSNorm(o_t) * silu(W_g x_t) ]

with rotary queries and keys; each head has one fixed decay, so nothing about it is learned.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.linear_attention import linear_attention
from ...ops.rotary import apply_rotary
from ..contract import LayerContext
from ..initial import FLA
from ..layout import SequenceLayout
from ..rope_parameters import RotarySpec
from ..state import LayerState
from .base import CacheKind
from .linear_heads import FeatureMapMixer


@options
class RetentionOptions(Options):
    """num_heads and num_kv_heads: None takes the config's."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    expand_k: float | int = 1.0
    expand_v: float | int = 2.0
    feature_map: str | None = None
    use_output_gate: bool = True
    rope_theta: float | int = 10000.0
    gate_activation: str = "silu"
    output_norm_affine: bool = True


@MIXERS.register("retnet")
class Retention(FeatureMapMixer):
    """RetNet's retention with a fixed decay a head."""

    Options = RetentionOptions
    cache_kind: ClassVar[CacheKind] = "recurrent"
    label: ClassVar[str] = "RetNet"
    inits: ClassVar = {
        **FLA,
        "official": "torchscale's: queries, keys, values and gate Xavier of gain 2^-2.5, the output of gain 1",
    }

    def __init__(self, config: Any, options: RetentionOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.build_output(options.use_output_gate, options.gate_activation, affine=options.output_norm_affine)

    @classmethod
    def validate(cls, config: Any, options: RetentionOptions) -> None:
        super().validate(config, options)
        head_k_dim = cls.head_sizes(config, options).head_k_dim
        if head_k_dim % 2:
            raise ConfigError(
                f"mixer retnet: expand_k {options.expand_k} gives heads of {head_k_dim} features, an odd number, and "
                "RoPE rotates pairs; change expand_k or num_heads"
            )

    @classmethod
    def rotary(cls, config: Any, options: RetentionOptions) -> RotarySpec:
        parameters = {"rope_type": "default", "rope_theta": float(options.rope_theta)}
        return RotarySpec(cls.head_sizes(config, options).head_k_dim, parameters, config.max_position_embeddings)

    def log_decay(self, device: torch.device) -> Tensor:
        """log gamma_h, fp32 [H]; computed at use, since a buffer would need re-initialising after each load."""
        heads = torch.arange(self.sizes.num_heads, device=device, dtype=torch.float32)
        return torch.log1p(-torch.exp(-math.log(2.0) * (5.0 + heads)))

    def init_weights(self) -> None:
        super().init_weights()
        if self.init_policy != "official":
            return
        for linear in (self.q_proj, self.k_proj, self.v_proj, getattr(self, "g_proj", None)):
            if linear is not None:
                init.xavier_uniform_(linear.weight, gain=2**-2.5)
        init.xavier_uniform_(self.o_proj.weight)

    def decays(self, x: Tensor, layout: SequenceLayout) -> Tensor:
        """Log decays, fp32 [H] or [B, T, H]."""
        decay = self.log_decay(x.device)
        if layout.order is None:
            return decay
        return layout.zero_padding(decay.expand(*x.shape[:2], -1))  # padding after valid tokens must not decay

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.mapped_heads(x, layout, state)
        rotary = context.position_embeddings
        assert rotary is not None
        q, k = (apply_rotary(part, *rotary, head_axis=2) for part in (q, k))
        out = state.advance(linear_attention, q, k, v, self.decays(x, layout), layout=layout)
        return self.read_out(x, out)
