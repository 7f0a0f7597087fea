"""Forgetting attention, FoX (Lin et al. 2025, arXiv 2503.02130).

    s_ij = q_i . k_j / sqrt(K) + sum_{s = j+1..i} f_s,   f_t = logsigmoid(W_f x_t + b) per query head

softmax attention whose scores decay with the gates between query and key; no positions. It is `attention` with
`forget_gate`, and a QK-norm with a weight for every feature of every head.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from ...core.errors import ConfigError
from ...core.options import options
from ...core.registry import MIXERS
from ..initial import FLA
from ..norms import PerHeadRMSNorm
from .attention import Attention, AttentionOptions


@options
class ForgettingOptions(AttentionOptions):
    """As attention's, with forget gates and without positions unless told otherwise."""

    qk_norm_eps: float | None = 1e-5
    position: Literal["rope", "none"] | None = "none"
    forget_gate: bool = True


@MIXERS.register("forgetting_transformer")
class ForgettingAttention(Attention):
    """FoX; `output_gate: elementwise` is its Pro form's gate."""

    inits: ClassVar = FLA
    Options = ForgettingOptions
    label: ClassVar[str] = "FoX"

    def head_norm(self, num_heads: int, eps: float) -> nn.Module:
        return PerHeadRMSNorm(num_heads, self.head_dim, eps)

    @classmethod
    def validate(cls, config: Any, options: AttentionOptions) -> None:
        super().validate(config, options)
        if not options.forget_gate:
            raise ConfigError("forget_gate: False is not FoX; use True, or mixer attention")
