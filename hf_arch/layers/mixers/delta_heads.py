"""What the gated delta rules share: grouped values, queries and keys of length one, log decays, output gates, and the
recurrence that erases and writes.

    S' = exp(g_t) S_{t-1},   u_t = v_t - S'^T e_t,   S_t = S' + w_t u_t^T,   o_t = (q_t / sqrt(K))^T S_t

with w the written key and e the erasing one. Each mixer says what w, e, v and the decay g are.
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
from ...ops.delta_rule import dplr_delta_rule
from ...ops.norm import l2_norm
from ...ops.precision import state_dtype
from ...ops.softplus_decay import softplus_decay
from ..layout import SequenceLayout
from ..norms import GatedRMSNorm
from ..state import LayerState
from .base import divide
from .linear_heads import HeadSizes, LinearHeadsMixer, expanded_width
from .mamba import init_step_bias

INITIAL = ("dt_min", "dt_max", "dt_init_floor")
"""Options of initial values alone."""
UNIT_EPS = 1e-6
"""Added to the squares of the lengths of queries and keys."""


@options
class DeltaHeadsOptions(Options):
    """num_heads (of queries and keys) and head_dim (K): None takes the config's; V = expand_v K; num_v_heads: None =
    num_heads; allow_neg_eigval doubles the erasing. dt_* shape the initial decays."""

    num_heads: int | None = None
    head_dim: int | None = None
    num_v_heads: int | None = None
    expand_v: float | int = 1.0
    use_short_conv: bool = True
    conv_size: int = 4
    use_output_gate: bool = True
    gate_activation: str = "sigmoid"
    allow_neg_eigval: bool = False
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_init_floor: float = 1e-4


@dataclass(frozen=True)
class GroupedValueSizes(HeadSizes):
    """`num_heads` value heads; each of the `num_kv_heads` query and key heads serves consecutive ones."""

    @property
    def key_dim(self) -> int:
        return self.num_kv_heads * self.head_k_dim

    @property
    def kv_value_dim(self) -> int:
        return self.value_dim

    def split(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, .] projections -> q, k [B, T, H, K] of the query and key heads and v [B, T, Hv, V]."""
        shape = (self.num_kv_heads, self.head_k_dim)
        return q.unflatten(-1, shape), k.unflatten(-1, shape), v.unflatten(-1, (self.num_heads, self.head_v_dim))

    def per_value_head(self, x: Tensor, axis: int = 2) -> Tensor:
        """What belongs to H query and key heads (or to Hv value heads already), for all Hv value heads."""
        groups = self.num_heads // x.shape[axis]
        return x if groups == 1 else x.repeat_interleave(groups, axis)


class DeltaHeadsMixer(LinearHeadsMixer):
    """Base of the gated delta rules."""

    sizes: GroupedValueSizes
    state_products: ClassVar[int] = 3
    no_weight_decay: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")
    keep_fp32: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")
    initial_options: ClassVar[tuple[str, ...]] = INITIAL
    """Options that shape initial values and nothing else."""

    def __init__(self, config: Any, options: Any, layer_idx: int):
        super().__init__(config, options, layer_idx)
        if options.use_short_conv:
            self.build_short_convs(options.conv_size)

    @classmethod
    def head_sizes(cls, config: Any, options: Any) -> GroupedValueSizes:
        heads = options.num_heads or config.num_attention_heads
        value_heads = options.num_v_heads or heads
        if value_heads % heads:
            near = max(1, round(value_heads / heads)) * heads
            raise ConfigError(
                f"num_v_heads: {value_heads} is not a multiple of the {heads} query and key heads; "
                f"nearest valid: {near}"
            )
        own_heads = options.num_heads is None and config.head_dim is not None
        key_dim = options.head_dim or (
            config.head_dim if own_heads else divide(config.hidden_size, heads, "num_heads", "hidden_size")
        )
        return GroupedValueSizes(value_heads, heads, key_dim, expanded_width(key_dim, options.expand_v, "expand_v"))

    @classmethod
    def effective(cls, config: Any, options: Any) -> dict[str, Any]:
        values = {**super().effective(config, options), "sizes": cls.head_sizes(config, options)}
        for name in ("num_heads", "num_v_heads", "head_dim", "expand_v", *cls.initial_options):
            del values[name]
        return values

    def build_decay(self, heads: int, channels: int = 1) -> None:
        """The rates A of `heads` heads and the step bias of each of their `channels` decays."""
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads * channels))

    def build_low_rank_output(self, bias: bool = True) -> None:
        """As `build_output`, the gate of rank V and with a bias or without."""
        sizes, options = self.sizes, self.options
        if options.use_output_gate:
            self.g_proj = low_rank(self.config.hidden_size, sizes.head_v_dim, sizes.value_dim, bias=bias)
            self.o_norm: nn.Module = GatedRMSNorm(sizes.head_v_dim, self.config.norm_eps, options.gate_activation)
        else:
            self.build_output(False)

    def heads(self, x: Tensor, layout: SequenceLayout, state: LayerState) -> tuple[Tensor, Tensor, Tensor]:
        """q, k of length one and v, by head; k is 0 at padding, where nothing is then written."""
        q, k, v = self.plain_heads(x, layout, state)
        return l2_norm(q, UNIT_EPS), l2_norm(k, UNIT_EPS), v

    def heads_for_rule(
        self, x: Tensor, layout: SequenceLayout, state: LayerState
    ) -> tuple[Tensor, Tensor, Tensor, float | None]:
        """`heads` for `delta_rule`, whose `unit_eps` is the fourth: its kernel makes the lengths, but for a subclass
        with `heads` of its own."""
        if type(self).heads is DeltaHeadsMixer.heads:
            return (*self.plain_heads(x, layout, state), UNIT_EPS)
        return (*self.heads(x, layout, state), None)

    def plain_heads(self, x: Tensor, layout: SequenceLayout, state: LayerState) -> tuple[Tensor, Tensor, Tensor]:
        """The same before their norm. The SiLU is that of the convolutions where there are any."""
        q, k, v = self.project(x, layout, state)
        if not self.options.use_short_conv:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        return self.sizes.split(q, layout.zero_padding(k), v)

    def strength(self, logits: Tensor) -> Tensor:
        """beta, fp32, in (0, 1), or (0, 2) with `allow_neg_eigval`."""
        beta = logits.to(state_dtype(logits)).sigmoid()
        return 2.0 * beta if self.options.allow_neg_eigval else beta

    def log_decay(self, logits: Tensor, layout: SequenceLayout) -> Tensor:
        """g, fp32 [B, T, H, C] of logits [B, T, H C]; 0 at padding."""
        return layout.zero_padding(softplus_decay(logits, self.A_log, self.dt_bias))

    def erase_and_write(
        self,
        q: Tensor,
        write: Tensor,
        v: Tensor,
        g: Tensor,
        recall: Tensor,
        layout: SequenceLayout,
        state: LayerState,
        min_log_decay: float | None = None,
    ) -> Tensor:
        """The recurrence of this file with u_t = v_t - S_{t-1}^T recall_t: exp(g) e where the decay comes first.

        Args:
            q, write, recall: [B, T, Hv, K]. g: the same or [B, T, Hv, 1].
            v: [B, T, Hv, V], the shape of the output.
            min_log_decay: what no g is below, where that is known.
        """
        out = state.advance(
            dplr_delta_rule,
            q,
            g.expand(*g.shape[:3], q.shape[-1]),
            write,
            v,
            recall,
            -write,
            scale=q.shape[-1] ** -0.5,
            min_log_decay=min_log_decay,
            layout=layout,
        )
        return out

    def lowest_rate(self) -> float:
        """The smallest initial rate A."""
        return 0.0

    def init_weights(self) -> None:
        init_rates(self.A_log, self.lowest_rate())
        init_step_bias(self.dt_bias, self.options)


def low_rank(width: int, rank: int, out: int, *, bias: bool = False) -> nn.Sequential:
    """W_2 W_1 x (+ b), W_1 to `rank` numbers."""
    return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=bias))


def init_rates(rate_log: Tensor, low: float) -> None:
    """The logarithm of rates that are uniform in [low, 16]; never that of 0."""
    init.copy_(rate_log, torch.empty_like(rate_log).uniform_(max(low, 1e-4), 16.0).log())
