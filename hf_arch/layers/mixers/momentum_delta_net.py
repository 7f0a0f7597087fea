"""Momentum DeltaNet: the delta rule whose corrections pass through a momentum (arXiv 2605.05838).

    u_t = v_t - S_{t-1}^T (a_t k_t),   M_t = mu_t M_{t-1} + eta_t k_t u_t^T,   S_t = a_t S_{t-1} + beta_t M_t
    o_t = (q_t / sqrt(K))^T S_t,   y_t = W_o [ RMSNorm(o_t) * silu(W_g x_t) ]

    log mu = max(-exp(Mu) softplus(W_m x + b), min_log_mu),   eta = 1 + tanh(W_e x / tau),   tau = sqrt(D / tau_factor)
    z = eta exp(F),   beta = sigmoid(W_b x) z^2 / (1 + z^2),   log a = -exp(A) softplus(W_a x + b) - log(1 + z^2)

with q, k, v = silu(conv(W x)), q corrected by its key, q - exp(D) k, and both normed. Value heads may outnumber query
and key heads; A, Mu, F and D belong to the latter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import options
from ...core.registry import MIXERS
from ...ops.momentum_delta import momentum_delta_rule
from ...ops.norm import l2_norm
from ...ops.precision import state_dtype
from ...ops.softplus_decay import softplus_decay
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..short_conv import ShortConvolution
from ..state import LayerState
from .base import MixerCost
from .delta_heads import DeltaHeadsMixer, DeltaHeadsOptions, init_rates
from .mamba import init_step_bias

_LARGEST_FACTOR = 4.0


def _shifted_elu(x: Tensor) -> Tensor:
    return F.elu(x) + 1


def _as_is(x: Tensor) -> Tensor:
    return x


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "elu": _shifted_elu, "identity": _as_is}


@options
class MomentumDeltaNetOptions(DeltaHeadsOptions):
    """Of heads as in `gated_delta_net`. qk_activation: of queries and keys; elu is elu + 1. qk_norm: to length one, or
    to entries that sum to one. decay_recall: whether the state decays before it is read for the correction.
    correct_query: q - exp(D) k. min_log_mu: what no log mu is below where `bound_mu`."""

    expand_v: float | int = 2.0
    gate_activation: str = "silu"
    qk_activation: Literal["silu", "relu", "elu", "identity"] = "silu"
    qk_norm: Literal["l2", "sum"] = "l2"
    decay_recall: bool = True
    correct_query: bool = True
    bound_mu: bool = True
    min_log_mu: float | int = -2.0
    tau_factor: float | int = 1


@MIXERS.register("momentum_delta_net")
class MomentumDeltaNet(DeltaHeadsMixer):
    """Momentum DeltaNet, with grouped values."""

    Options = MomentumDeltaNetOptions
    label: ClassVar[str] = "MomentumDN"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("A_log", "Mu_log", "log_factor", "D_log", "dt_bias", "mu_bias")
    keep_fp32: ClassVar[tuple[str, ...]] = no_weight_decay

    def __init__(self, config: Any, options: MomentumDeltaNetOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        heads, value_heads = self.sizes.num_kv_heads, self.sizes.num_heads
        if options.use_short_conv and options.qk_activation != "silu":
            for index, name in enumerate(("q_conv", "k_conv")):
                conv = ShortConvolution(self.sizes.key_dim, options.conv_size, activation=None, state_index=index)
                setattr(self, name, conv)
        self.a_proj, self.b_proj, self.m_proj, self.e_proj = (
            nn.Linear(config.hidden_size, value_heads, bias=False) for _ in range(4)
        )
        self.A_log, self.Mu_log, self.log_factor = (nn.Parameter(torch.empty(heads)) for _ in range(3))
        if options.correct_query:
            self.D_log = nn.Parameter(torch.empty(heads))
        self.dt_bias, self.mu_bias = (nn.Parameter(torch.empty(value_heads)) for _ in range(2))
        self.build_output(options.use_output_gate, options.gate_activation)

    @classmethod
    def validate(cls, config: Any, options: MomentumDeltaNetOptions) -> None:
        super().validate(config, options)
        if options.tau_factor <= 0:
            raise ConfigError(
                f"mixer momentum_delta_net: tau_factor {options.tau_factor} is not allowed; use a number > 0"
            )
        if options.min_log_mu > 0:
            raise ConfigError(
                f"mixer momentum_delta_net: min_log_mu {options.min_log_mu} is not allowed; use a number <= 0"
            )

    @classmethod
    def effective(cls, config: Any, options: MomentumDeltaNetOptions) -> dict[str, Any]:
        values = super().effective(config, options)
        return {**values, "min_log_mu": float(options.min_log_mu) if values.pop("bound_mu") else None}

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.projections(x, state)
        q, k = self._keys(q, k, layout, state)
        v = layout.zero_padding(self._values(v, layout, state))
        dtype = state_dtype(x)
        eta = 1 + torch.tanh(self.e_proj(x).to(dtype) / math.sqrt(self.config.hidden_size / self.options.tau_factor))
        squared = (eta * self._of_value_heads(self.log_factor).to(dtype).exp()).square()
        beta = layout.zero_padding(self.strength(self.b_proj(x)) * squared / (1 + squared))
        log_mu = softplus_decay(self.m_proj(x), self._of_value_heads(self.Mu_log), self.mu_bias).squeeze(-1)
        if self.options.bound_mu:
            log_mu = log_mu.clamp_min(self.options.min_log_mu)
        log_a = softplus_decay(self.a_proj(x), self._of_value_heads(self.A_log), self.dt_bias).squeeze(-1)
        log_a = layout.zero_padding(log_a - squared.log1p())
        recall = k * log_a.exp().unsqueeze(-1) if self.options.decay_recall else k
        out = state.advance(
            momentum_delta_rule,
            q,
            k * eta.unsqueeze(-1),
            v,
            recall,
            log_a,
            layout.zero_padding(log_mu),
            beta,
            layout=layout,
            states=2,
        )
        return self.read_out(x, out)

    def _keys(self, q: Tensor, k: Tensor, layout: SequenceLayout, state: LayerState) -> tuple[Tensor, Tensor]:
        """[B, T, H K] -> q and k [B, T, Hv, K]; k is 0 at padding, where nothing is then written."""
        if self.options.use_short_conv:
            q, k = self.q_conv(q, layout, state), self.k_conv(k, layout, state)
        elif self.options.qk_activation == "silu":
            q, k = F.silu(q), F.silu(k)
        shape = (self.sizes.num_kv_heads, self.sizes.head_k_dim)
        q, k = q.unflatten(-1, shape), k.unflatten(-1, shape)
        if self.options.qk_activation != "silu":
            q, k = (_ACTIVATIONS[self.options.qk_activation](part) for part in (q, k))
        if self.options.correct_query:
            q = q - self.D_log.exp().to(q.dtype).unsqueeze(-1) * k
        norm = l2_norm if self.options.qk_norm == "l2" else _sum_norm
        return self.sizes.per_value_head(norm(q)), self.sizes.per_value_head(layout.zero_padding(norm(k)))

    def _values(self, v: Tensor, layout: SequenceLayout, state: LayerState) -> Tensor:
        v = self.v_conv(v, layout, state) if self.options.use_short_conv else F.silu(v)
        return v.unflatten(-1, (self.sizes.num_heads, self.sizes.head_v_dim))

    def _of_value_heads(self, parameter: Tensor) -> Tensor:
        """[H] -> [Hv]."""
        return self.sizes.per_value_head(parameter, 0)

    def cost(self, seq_len: int) -> MixerCost:
        """Products with S alone; M is a second state of the same size."""
        base = super().cost(seq_len)
        return MixerCost(base.mixing_flops, base.decode_flops, base.state_bytes + 4 * self.state_entries())

    def init_weights(self) -> None:
        for rates in (self.A_log, self.Mu_log):
            init_rates(rates, self.lowest_rate())
        uniform = [(self.log_factor, _LARGEST_FACTOR), *([(self.D_log, 1.0)] if self.options.correct_query else [])]
        for parameter, high in uniform:
            init.uniform_(parameter, 1e-4, high)
            init.copy_(parameter, parameter.log())
        init_step_bias(self.dt_bias, self.options)
        init_step_bias(self.mu_bias, self.options)


def _sum_norm(x: Tensor) -> Tensor:
    """x / |x|_1."""
    return x / x.abs().sum(-1, keepdim=True).clamp_min(1e-6)
