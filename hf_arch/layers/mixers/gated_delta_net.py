"""Gated DeltaNet: the delta rule with a scalar decay that depends on the token (Yang et al. 2024, arXiv 2412.06464).

    S' = exp(g_t) S_{t-1},   S_t = S' + beta_t k_t (v_t - S'^T k_t)^T,   o_t = (q_t / sqrt(K))^T S_t
    g_t = -exp(A) softplus(W_a x_t + b),   beta_t = sigmoid(W_b x_t),   y_t = W_o [ RMSNorm(o_t) * silu(W_g x_t) ]

with q, k, v = silu(conv(W x)) and q, k of length one: the decay clears the state at once, the delta rule replaces
single entries. Value heads may outnumber query and key heads (`num_v_heads`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.delta_rule import delta_rule
from ...ops.norm import l2_norm
from ...ops.precision import state_dtype
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..state import LayerState
from .base import divide
from .linear_heads import HeadSizes, LinearHeadsMixer, expanded_width
from .mamba import init_step_bias


@options
class GatedDeltaNetOptions(Options):
    """num_heads (of queries and keys) and head_dim (K): None takes the config's; V = expand_v K; num_v_heads: None =
    num_heads. dt_* shape the initial decays."""

    num_heads: int | None = None
    head_dim: int | None = None
    num_v_heads: int | None = None
    expand_v: float | int = 2.0
    use_short_conv: bool = True
    conv_size: int = 4
    use_output_gate: bool = True
    gate_activation: str = "silu"
    allow_neg_eigval: bool = False
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_init_floor: float = 1e-4


@dataclass(frozen=True)
class GroupedValueSizes(HeadSizes):
    """`num_heads` value heads; each of the `num_kv_heads` query and key heads serves consecutive ones."""

    @property
    def key_dim(self) -> int:
        return self.kv_key_dim

    @property
    def kv_value_dim(self) -> int:
        return self.value_dim

    def split(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, .] projections -> q, k [B, T, H, K] of the query and key heads and v [B, T, Hv, V]."""
        shape = (self.num_kv_heads, self.head_k_dim)
        return q.unflatten(-1, shape), k.unflatten(-1, shape), v.unflatten(-1, (self.num_heads, self.head_v_dim))


@MIXERS.register("gated_delta_net")
class GatedDeltaNet(LinearHeadsMixer):
    """Gated DeltaNet, with grouped values."""

    Options = GatedDeltaNetOptions
    label: ClassVar[str] = "GDN"
    state_products: ClassVar[int] = 3
    no_weight_decay: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")
    keep_fp32: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")

    def __init__(self, config: Any, options: GatedDeltaNetOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        heads = self.sizes.num_heads
        if options.use_short_conv:
            self.build_short_convs(options.conv_size)
        self.a_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.b_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.build_output(options.use_output_gate, options.gate_activation)

    @classmethod
    def head_sizes(cls, config: Any, options: GatedDeltaNetOptions) -> HeadSizes:
        heads = options.num_heads or config.num_attention_heads
        value_heads = options.num_v_heads or heads
        if value_heads % heads:
            near = max(1, round(value_heads / heads)) * heads
            raise ConfigError(
                f"mixer gated_delta_net: num_v_heads {value_heads} is no multiple of its {heads} query and key heads; "
                f"nearest valid: {near}"
            )
        own_heads = options.num_heads is None and config.head_dim is not None
        key_dim = options.head_dim or (
            config.head_dim if own_heads else divide(config.hidden_size, heads, "num_heads", "hidden_size")
        )
        return GroupedValueSizes(value_heads, heads, key_dim, expanded_width(key_dim, options.expand_v, "expand_v"))

    @classmethod
    def effective(cls, config: Any, options: GatedDeltaNetOptions) -> dict[str, Any]:
        values = {**super().effective(config, options), "sizes": cls.head_sizes(config, options)}
        for name in ("num_heads", "num_v_heads", "head_dim", "expand_v", "dt_min", "dt_max", "dt_init_floor"):
            del values[name]
        return values

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.project(x, layout, state)
        if not self.options.use_short_conv:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        q, k, v = self.sizes.split(q, layout.zero_padding(k), v)
        groups = self.sizes.num_heads // self.sizes.num_kv_heads
        q, k = (l2_norm(part) if groups == 1 else l2_norm(part).repeat_interleave(groups, 2) for part in (q, k))
        beta = self.b_proj(x).to(state_dtype(x)).sigmoid()
        out, final = delta_rule(
            q,
            k,
            v,
            2.0 * beta if self.options.allow_neg_eigval else beta,
            layout.zero_padding(self.log_decay(x)),
            initial_state=state.recurrent(),
            output_final_state=bool(state),
            segment_ids=layout.segment_ids,
        )
        state.write_recurrent(final)
        return self.read_out(x, out)

    def log_decay(self, x: Tensor) -> Tensor:
        """g, fp32 [B, T, H]."""
        dtype = state_dtype(x)
        return -self.A_log.to(dtype).exp() * F.softplus(self.a_proj(x).to(dtype) + self.dt_bias.to(dtype))

    def init_weights(self) -> None:
        init.copy_(self.A_log, torch.empty(self.A_log.shape).uniform_(1e-4, 16.0).log())  # never the log of 0
        init_step_bias(self.dt_bias, self.options)
