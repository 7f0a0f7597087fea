"""Gated retention (Sun et al. 2024, You Only Cache Once, arXiv 2405.05254): retention whose decay depends on the token.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T,   o_t = (q_t / sqrt(K))^T S_t,   g_t = logsigmoid(W_r x_t) / 16
    y_t = W_o [ RMSNorm(o_t) * silu(W_g x_t) ]

with rotary queries and keys; the norm of each head has no weight. `rope_frequencies` as in `cross_attention`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import options
from ...core.registry import MIXERS
from ...ops.precision import state_dtype
from ..layout import SequenceLayout
from ..rope_parameters import RotarySpec
from .retnet import Retention, RetentionOptions
from .shared_kv import Frequencies


@options
class GatedRetentionOptions(RetentionOptions):
    """As of retention; `gate_logit_normalizer` is the 16 of the formula."""

    expand_v: float | int = 1.0
    output_norm_affine: bool = False
    gate_logit_normalizer: float | int = 16
    rope_frequencies: Frequencies = "default"


@MIXERS.register("gated_retention")
class GatedRetention(Retention):
    """Retention with a decay for each head and token."""

    Options = GatedRetentionOptions
    label: ClassVar[str] = "GatedRet"

    def __init__(self, config: Any, options: GatedRetentionOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.gk_proj = nn.Linear(config.hidden_size, self.sizes.num_heads, bias=False)

    @classmethod
    def validate(cls, config: Any, options: GatedRetentionOptions) -> None:  # type: ignore[override]
        super().validate(config, options)
        if options.gate_logit_normalizer <= 0:
            raise ConfigError(
                f"mixer gated_retention: gate_logit_normalizer {options.gate_logit_normalizer} is not allowed; use a "
                "number > 0"
            )

    @classmethod
    def rotary(cls, config: Any, options: GatedRetentionOptions) -> RotarySpec:  # type: ignore[override]
        spec = super().rotary(config, options)
        parameters = {**spec.rope_parameters, "rope_type": options.rope_frequencies}
        return RotarySpec(spec.head_dim, parameters, spec.max_position_embeddings)

    def decays(self, x: Tensor, layout: SequenceLayout) -> Tensor:
        gates = F.logsigmoid(self.gk_proj(x).to(state_dtype(x)))
        return layout.zero_padding(gates / self.options.gate_logit_normalizer)

    def init_weights(self) -> None:
        linears = [
            (self.o_proj, 2**-1.0),
            *((getattr(self, f"{name}_proj"), 2**-2.5) for name in ("q", "k", "v", "gk")),
        ]
        if self.options.use_output_gate:
            linears.append((self.g_proj, 2**-2.5))
        for linear, gain in linears:  # xavier
            bound = gain * math.sqrt(6 / (linear.in_features + linear.out_features))
            init.uniform_(linear.weight, -bound, bound)
