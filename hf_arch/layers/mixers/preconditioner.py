"""What the preconditioned delta rules add: the written key, scaled by how much of each channel was written before
(arXiv 2604.21100).

    a_t = exp(ga_t) a_{t-1} + ba_t k_t^2,   r = log(a_t + eps) - s,   k~_t = k_t * x^(-r / (1 + |r|))
    ga_t = -exp(A_a) softplus(W_ga x_t + b_a),   ba_t = sigmoid(W_ba x_t)

Channels that are often written are written less: a diagonal approximation of the second-order update. The rule erases
with k and writes with k~; `squash_x` x bounds the scale to (1/x, x).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import options
from ...ops.elementwise import hgrn_scan
from ...ops.precision import state_dtype
from ...ops.softplus_decay import softplus_decay
from ..layout import SequenceLayout
from ..state import LayerState
from .base import MixerCost
from .delta_heads import INITIAL, DeltaHeadsMixer, DeltaHeadsOptions, init_rates
from .mamba import init_step_bias

PARAMETERS = ("A_log_atk", "dt_bias_atk", "log_atk_scale")


@options
class PreconditionerOptions(DeltaHeadsOptions):
    """squash_x and squash_eps: the x and eps of the formula; log_atk_scale_init: the first s; A_min: the smallest of
    the first rates A."""

    squash_x: float | int = 1.5
    squash_eps: float = 1e-6
    log_atk_scale_init: float | int = -0.2
    A_min: float | int = 0


class PreconditionedMixer(DeltaHeadsMixer):
    """Base of the preconditioned delta rules; a subclass says of which heads and which decay the averages are."""

    no_weight_decay: ClassVar[tuple[str, ...]] = (*DeltaHeadsMixer.no_weight_decay, *PARAMETERS)
    keep_fp32: ClassVar[tuple[str, ...]] = (*DeltaHeadsMixer.keep_fp32, *PARAMETERS)
    initial_options: ClassVar[tuple[str, ...]] = (*INITIAL, "log_atk_scale_init", "A_min")

    def build_preconditioner(self, heads: int) -> None:
        """The averages of `heads` heads; the projection of their decays is the subclass's."""
        self.b_atk_proj = nn.Linear(self.config.hidden_size, heads, bias=False)
        self.A_log_atk = nn.Parameter(torch.empty(heads))
        self.dt_bias_atk = nn.Parameter(torch.empty(heads))
        self.log_atk_scale = nn.Parameter(torch.empty(heads))

    @classmethod
    def validate(cls, config: Any, options: Any) -> None:
        super().validate(config, options)
        if options.squash_x <= 0:
            raise ConfigError(
                f"squash_x: {options.squash_x} is not allowed; use a number > 0 (1 means no preconditioning)"
            )
        if options.squash_eps <= 0:
            raise ConfigError(f"squash_eps: {options.squash_eps} is not allowed; use a number > 0")
        if not 0 <= options.A_min < 16:
            raise ConfigError(f"A_min: {options.A_min} is not allowed; use a number from 0 to below 16")

    def precondition(
        self, x: Tensor, k: Tensor, decay_logits: Tensor, layout: SequenceLayout, state: LayerState
    ) -> Tensor:
        """k~ in fp32 of normalised keys k [B, T, H, K], 0 at padding."""
        gate = self.b_atk_proj(x).to(state_dtype(x)).sigmoid().unsqueeze(-1)
        decay = layout.zero_padding(softplus_decay(decay_logits, self.A_log_atk, self.dt_bias_atk)).exp()
        square = k.to(gate.dtype).square()
        average, final = hgrn_scan(
            (gate * square).flatten(2),
            decay.expand_as(square).flatten(2),
            initial_state=state.recurrent(1),
            segment_ids=layout.segment_ids,
            output_final_state=bool(state),
        )
        state.write_recurrent(final, 1)
        excess = (average.view_as(square) + self.options.squash_eps).log() - self.log_atk_scale.unsqueeze(-1)
        return k * torch.exp(-math.log(self.options.squash_x) * excess / (1.0 + excess.abs()))

    def cost(self, seq_len: int) -> MixerCost:
        """The averages are elementwise, without products; H K fp32 numbers besides the state."""
        base, averages = super().cost(seq_len), self.A_log_atk.numel() * self.sizes.head_k_dim
        return replace(base, state_bytes=base.state_bytes + 4 * averages)

    def lowest_rate(self) -> float:
        return self.options.A_min

    def init_weights(self) -> None:
        super().init_weights()
        init_rates(self.A_log_atk, self.lowest_rate())
        init_step_bias(self.dt_bias_atk, self.options)
        init.constant_(self.log_atk_scale, self.options.log_atk_scale_init)
