"""Mamba's selective state space (Gu & Dao 2023, arXiv 2312.00752).

    [h, z] = W_in x,   h = silu(conv(h)),   [d, B, C] = W_x h,   dt = softplus(W_dt d + b)
    S_t = exp(dt_t A) S_{t-1} + dt_t h_t B_t^T,   y_t = S_t C_t + D h_t,   out = W_out( y * silu(z) )

The state is N numbers a channel; step size, input and output weights depend on the token.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.documents import document_keep
from ...ops.low_rank_scan import has_low_rank_scan, low_rank_scan
from ...ops.precision import state_dtype
from ...ops.selective_scan import selective_scan
from ...ops.softplus import softplus
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..fp32 import Fp32BiasLinear
from ..initial import FLA, TRANSFORMERS, init_as_torch, residual_branches
from ..layout import SequenceLayout
from ..norms import ArchRMSNorm
from ..plain_linear import is_readable, project_parts
from ..short_conv import ShortConvolution
from ..state import LayerState
from .base import MixerCost, RecurrentMixer


@options
class MambaOptions(Options):
    """state_size is N; dt_rank None = ceil(D / 16); dt_* shape the initial step sizes. `inner_norms`: RMSNorms of what
    dt, B and C are made from (Jamba)."""

    state_size: int = 16
    expand: float | int = 2
    conv_size: int = 4
    dt_rank: int | None = None
    conv_bias: bool = True
    proj_bias: bool = False
    inner_norms: bool = False
    dt_scale: float | int = 1.0
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_init_floor: float = 1e-4


@MIXERS.register("mamba")
class SelectiveStateSpace(RecurrentMixer):
    """Mamba-1."""

    Options = MambaOptions
    cache_kind: ClassVar = "recurrent+conv"
    label: ClassVar[str] = "Mamba"
    inits: ClassVar = {
        **TRANSFORMERS,
        **FLA,
        "official": "mamba_ssm's: Linear as torch has it, the output projection further divided by sqrt(sublayers)",
    }
    no_weight_decay: ClassVar[tuple[str, ...]] = ("A_log", "D", "dt_proj.bias")
    keep_fp32: ClassVar[tuple[str, ...]] = ("A_log", "D")

    def __init__(self, config: Any, options: MambaOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        width = config.hidden_size
        self.inner = int(options.expand * width)
        self.state_size = options.state_size
        self.dt_rank = self._dt_rank(config, options)
        self.in_proj = nn.Linear(width, 2 * self.inner, bias=options.proj_bias)
        self.conv = ShortConvolution(self.inner, options.conv_size, bias=options.conv_bias)
        self.x_proj = nn.Linear(self.inner, self.dt_rank + 2 * self.state_size, bias=False)
        self.dt_proj = Fp32BiasLinear(self.dt_rank, self.inner)
        if options.inner_norms:
            self.dt_norm = ArchRMSNorm(self.dt_rank, config.norm_eps)
            self.B_norm = ArchRMSNorm(self.state_size, config.norm_eps)
            self.C_norm = ArchRMSNorm(self.state_size, config.norm_eps)
        self.A_log = nn.Parameter(torch.empty(self.inner, self.state_size))
        self.D = nn.Parameter(torch.empty(self.inner))
        self.out_proj = nn.Linear(self.inner, width, bias=options.proj_bias)

    @staticmethod
    def _dt_rank(config: Any, options: MambaOptions) -> int:
        return options.dt_rank or math.ceil(config.hidden_size / 16)

    @classmethod
    def effective(cls, config: Any, options: MambaOptions) -> dict[str, Any]:
        return {**super().effective(config, options), "dt_rank": cls._dt_rank(config, options)}

    @classmethod
    def validate(cls, config: Any, options: MambaOptions) -> None:
        for name in ("state_size", "conv_size"):
            if getattr(options, name) < 1:
                raise ConfigError(f"mixer mamba: {name} {getattr(options, name)} is not allowed; use an integer >= 1")
        if int(options.expand * config.hidden_size) < 1:
            raise ConfigError(f"mixer mamba: expand {options.expand} is not allowed; expand * hidden_size must be >= 1")

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        hidden, gate = project_parts(self.in_proj, x, (self.inner, self.inner))
        hidden = self.conv(layout.zero_padding(hidden), layout, state)  # a bias made padding nonzero
        if (out := self._scan_of_weights(hidden, gate, layout, state)) is not None:
            return self.out_proj(out)
        low, B, C = self.x_proj(hidden).split([self.dt_rank, self.state_size, self.state_size], dim=-1)
        if self.options.inner_norms:
            low, B, C = self.dt_norm(low), self.B_norm(B), self.C_norm(C)
        dtype = state_dtype(x)
        dt = self.dt_proj(low).to(dtype)
        if padded := layout.mask is not None:
            dt = layout.zero_padding(softplus(dt))  # a step of 0 leaves the state alone
        A, D = -torch.exp(self.A_log.to(dtype)), self.D.to(dtype)
        out = state.advance(selective_scan, hidden, dt, A, B, C, D, gate, dt_softplus=not padded, layout=layout)
        return self.out_proj(out.to(gate.dtype))

    def _scan_of_weights(
        self, hidden: Tensor, gate: Tensor, layout: SequenceLayout, state: LayerState
    ) -> Tensor | None:
        """What `out_proj` reads, where rows without padding or states are trained on a CPU by kernels; else None."""
        if state or layout.mask is not None or self.options.inner_norms or hidden.shape[1] == 1:
            return None
        if not (torch.is_grad_enabled() and is_readable(self.x_proj) and is_readable(self.dt_proj, Fp32BiasLinear)):
            return None
        weights = self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias
        if not has_low_rank_scan(hidden, *weights, self.A_log, self.D, gate):
            return None
        keep = None if layout.segment_ids is None else document_keep(layout.segment_ids, hidden.dtype)
        return low_rank_scan(hidden, *weights, -torch.exp(self.A_log), self.D, gate, keep)

    def cost(self, seq_len: int) -> MixerCost:
        """h B^T into the state, S C out of it: 4 E N FLOPs a token, E = D expand; E N fp32 numbers and the window."""
        per_token = 4 * self.inner * self.state_size + self.conv.flops(1)
        element = cache_element_bytes(self.config)
        return MixerCost(
            mixing_flops=per_token * seq_len,
            decode_flops=per_token,
            state_bytes=4 * self.inner * self.state_size + self.conv.state_bytes(element),
        )

    def init_weights(self) -> None:
        steps = torch.arange(1, self.state_size + 1, dtype=torch.float32)
        init.copy_(self.A_log, torch.log(steps).expand(self.inner, -1))
        init.ones_(self.D)
        bound = self.dt_rank**-0.5 * self.options.dt_scale
        init.uniform_(self.dt_proj.weight, -bound, bound)
        init_step_bias(self.dt_proj.bias, self.options)
        bound = self.conv.kernel_size[0] ** -0.5  # torch's own rule for Conv1d, which the reference keeps
        init.uniform_(self.conv.weight, -bound, bound)
        if self.conv.bias is not None:
            init.uniform_(self.conv.bias, -bound, bound)
        if self.init_policy == "official":
            init_as_torch(self.in_proj)
            init_as_torch(self.x_proj)
            init_as_torch(self.out_proj, residual_branches(self.config) ** -0.5)


def init_step_bias(bias: Tensor, options: Any) -> None:
    """softplus^-1 of step sizes that are log-uniform in [dt_min, dt_max], not below dt_init_floor."""
    low, high = math.log(options.dt_min), math.log(options.dt_max)
    drawn = torch.empty_like(bias, dtype=torch.float32).uniform_()  # of `bias`: its name decides the numbers
    dt = torch.exp(drawn * (high - low) + low).clamp_(min=options.dt_init_floor)
    init.copy_(bias, dt + torch.log(-torch.expm1(-dt)))
