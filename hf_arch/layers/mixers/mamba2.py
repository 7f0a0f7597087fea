"""Mamba-2: a selective state space whose state decays by one number a head (Dao & Gu 2024, arXiv 2405.21060).

    [z, xBC, d] = W_in u,   [x, B, C] = silu(conv(xBC)),   dt = softplus(d + b),   A = -exp(A_log)
    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T,   y_t = S_t C_t + D x_t,   out = W_out RMSNorm(y * silu(z))

with S of P x N numbers a head. B and C are shared by the consecutive heads of a group, and each group is normed alone.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.norm import silu_gated_rms_norm
from ...ops.parts import split_parts
from ...ops.precision import state_dtype
from ...ops.silu_gate import silu_gated
from ...ops.ssd import ssd
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..initial import FLA, init_as_torch, residual_branches
from ..layout import SequenceLayout
from ..norms import ArchRMSNorm
from ..plain_linear import project, project_parts
from ..short_conv import ShortConvolution
from ..state import LayerState
from .base import MixerCost, RecurrentMixer, divide
from .mamba import init_step_bias


@options
class Mamba2Options(Options):
    """head_dim is P, state_size N. dt_limit_min, dt_limit_max (None = no bound) clamp the step sizes; `D_has_hdim`: a
    skip weight a channel instead of a head. A_min, A_max, dt_min, dt_max, dt_init_floor, conv_init (uniform in +-it)
    and `rescale_out_proj` (by 1 / sqrt(layers)) shape the initial weights. `projection_multipliers`: factors of z, x,
    B, C and dt as they leave W_in, None = 1 (Falcon-H1)."""

    head_dim: int = 64
    state_size: int = 128
    expand: float | int = 2
    n_groups: int = 1
    conv_size: int = 4
    conv_bias: bool = True
    proj_bias: bool = False
    use_norm: bool = True
    norm_before_gate: bool = False
    D_has_hdim: bool = False
    dt_limit_min: float | int = 0.0
    dt_limit_max: float | int | None = None
    A_min: float | int = 1
    A_max: float | int = 16
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_init_floor: float = 1e-4
    conv_init: float | None = None
    rescale_out_proj: bool = True
    projection_multipliers: list[float | int] | None = None


class GroupedGatedRMSNorm(ArchRMSNorm):
    """RMSNorm(y * silu(gate)), or RMSNorm(y) * silu(gate), each of `groups` parts of the last axis normed alone."""

    def __init__(self, dim: int, groups: int, eps: float, norm_before_gate: bool):
        super().__init__(dim, eps)
        self.groups, self.norm_before_gate = groups, norm_before_gate

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        weight: Any = self.weight
        if self.groups > 1:
            y, gate, weight = (x.unflatten(-1, (self.groups, -1)) for x in (y, gate, weight))
        out = silu_gated_rms_norm(y, weight, gate, self.eps, gate_first=not self.norm_before_gate)
        return out.flatten(-2) if self.groups > 1 else out


@MIXERS.register("mamba2")
class StateSpaceDual(RecurrentMixer):
    """Mamba-2."""

    Options = Mamba2Options
    cache_kind: ClassVar = "recurrent+conv"
    label: ClassVar[str] = "Mamba2"
    inits: ClassVar = {
        **FLA,
        "official": "mamba_ssm's: Linear and convolution as torch has them, the output also divided by sqrt(sublayers)",
    }
    no_weight_decay: ClassVar[tuple[str, ...]] = ("A_log", "D", "dt_bias")
    keep_fp32: ClassVar[tuple[str, ...]] = ("A_log", "D", "dt_bias")

    def __init__(self, config: Any, options: Mamba2Options, layer_idx: int):
        super().__init__(config, options, layer_idx)
        width = config.hidden_size
        self.inner = int(options.expand * width)
        self.num_heads = divide(self.inner, options.head_dim, "head_dim", "expand * hidden_size =")
        self.group_width = options.n_groups * options.state_size
        self.splits = [self.inner, self.inner + 2 * self.group_width, self.num_heads, self.extra_width()]
        self.in_proj = nn.Linear(width, sum(self.splits), bias=options.proj_bias)
        self.conv = ShortConvolution(self.inner + 2 * self.group_width, options.conv_size, bias=options.conv_bias)
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.D = nn.Parameter(torch.empty(self.inner if options.D_has_hdim else self.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        if options.use_norm:
            self.norm = GroupedGatedRMSNorm(self.inner, options.n_groups, config.norm_eps, options.norm_before_gate)
        self.out_proj = nn.Linear(self.inner, width, bias=options.proj_bias)

    @classmethod
    def validate(cls, config: Any, options: Mamba2Options) -> None:
        for name in ("head_dim", "state_size", "n_groups", "conv_size"):
            if getattr(options, name) < 1:
                raise ConfigError(f"mixer mamba2: {name} {getattr(options, name)} is not allowed; use an integer >= 1")
        heads = divide(int(options.expand * config.hidden_size), options.head_dim, "head_dim", "expand * hidden_size =")
        divide(heads, options.n_groups, "n_groups", "the number of heads")
        scales = options.projection_multipliers
        if scales is not None and (len(scales) != 5 or not all(scale != 0 and isfinite(scale) for scale in scales)):
            raise ConfigError(
                f"mixer mamba2: projection_multipliers {scales} is not allowed; use five numbers other than 0, of z, "
                "x, B, C and dt"
            )

    @classmethod
    def effective(cls, config: Any, options: Mamba2Options) -> dict[str, Any]:
        initial = ("A_min", "A_max", "dt_min", "dt_max", "dt_init_floor", "conv_init", "rescale_out_proj")
        values = {name: value for name, value in super().effective(config, options).items() if name not in initial}
        return {**values, "projection_multipliers": options.projection_multipliers or [1.0] * 5}

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        gate, hidden, step, extra = self.multiplied(*project_parts(self.in_proj, x, self.splits))
        hidden = self.conv(layout.zero_padding(hidden), layout, state)
        inner, B, C = split_parts(hidden, [self.inner, self.group_width, self.group_width])
        groups = (self.options.n_groups, self.options.state_size)
        dt = layout.zero_padding(self.step_sizes(step))  # a step of 0 leaves the state alone
        heads = inner.unflatten(-1, (self.num_heads, -1))
        out = self.recur(heads, dt, B.unflatten(-1, groups), C.unflatten(-1, groups), extra, layout, state).flatten(2)
        return project(self.out_proj, self.norm(out, gate) if self.options.use_norm else silu_gated(out, gate))

    def multiplied(self, gate: Tensor, hidden: Tensor, step: Tensor, extra: Tensor) -> tuple[Tensor, ...]:
        """The parts of what leaves `in_proj`, each times its factor."""
        scales = self.options.projection_multipliers
        if scales is None:
            return gate, hidden, step, extra
        widths = [self.inner, self.group_width, self.group_width]
        parts = [part * scale for part, scale in zip(hidden.split(widths, dim=-1), scales[1:4], strict=True)]
        return gate * scales[0], torch.cat(parts, dim=-1), step * scales[4], extra

    def extra_width(self) -> int:
        """Further outputs of `in_proj`, which `recur` gets as `extra`."""
        return 0

    def recur(
        self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, extra: Tensor, layout: SequenceLayout, state: LayerState
    ) -> Tensor:
        """The recurrence: x [B, T, H, P], dt [B, T, H], B and C [B, T, G, N] -> [B, T, H, P], D x included."""
        D = self.D.to(dt.dtype)
        out = state.advance(
            ssd,
            x,
            dt,
            -torch.exp(self.A_log.to(dt.dtype)),
            B,
            C,
            D.view(self.num_heads, -1) if self.options.D_has_hdim else D,
            layout=layout,
        )
        return out

    def step_sizes(self, step: Tensor) -> Tensor:
        """dt, fp32 [B, T, H]."""
        dtype = state_dtype(step)
        dt = F.softplus(step.to(dtype) + self.dt_bias.to(dtype))
        low, high = self.options.dt_limit_min, self.options.dt_limit_max
        return dt if low <= 0 and high is None else dt.clamp(low, high)

    def cost(self, seq_len: int) -> MixerCost:
        """x B^T into the state and S C out of it: 4 P N a head and token; P N fp32 numbers a head, and the window."""
        entries = self.inner * self.options.state_size
        per_token = 4 * entries + self.conv.flops(1)
        window = self.conv.state_bytes(cache_element_bytes(self.config))
        return MixerCost(mixing_flops=per_token * seq_len, decode_flops=per_token, state_bytes=4 * entries + window)

    def init_weights(self) -> None:
        init.copy_(self.A_log, torch.empty_like(self.A_log).uniform_(self.options.A_min, self.options.A_max).log())
        init.ones_(self.D)
        init_step_bias(self.dt_bias, self.options)
        if self.init_policy == "official":
            init_as_torch(self.in_proj)
            init_as_torch(self.conv)
            if self.options.rescale_out_proj:
                init_as_torch(self.out_proj, residual_branches(self.config) ** -0.5)
        elif self.options.rescale_out_proj:  # torch's rule for Linear, smaller the deeper the model
            bound = (self.inner * self.config.num_hidden_layers) ** -0.5
            init.uniform_(self.out_proj.weight, -bound, bound)
        if self.options.conv_init is not None:
            init.uniform_(self.conv.weight, -self.options.conv_init, self.options.conv_init)
