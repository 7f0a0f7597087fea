"""Diagonal state space S4D (Gu et al. 2022, arXiv 2206.11893).

    s_t = a s_{t-1} + b u_t,   y_t = 2 Re(C . s_t) + D u_t,   a = exp(dt A),   b = (a - 1) / A * B
    out = W_o gelu(y)          (with `use_glu`: the half of it times the sigmoid of the other half)

for each channel by itself, with N/2 complex A that stand for conjugate pairs: the same linear system at every step. A
starts as S4D-Lin (-1/2 + i pi n), S4D-Inv (-1/2 + i N/pi (N / (2 n + 1) - 1)) or real (-(n + 1)).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError, choice_error
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.diagonal_ssm import diagonal_ssm
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..state import LayerState
from .base import MixerCost, RecurrentMixer

KINDS = ("lin", "inv", "real")


@options
class SSMOptions(Options):
    """state_size: N real numbers a channel (N/2 complex ones, or N for kind "real"); kind: how A starts ("lin", "inv",
    "real"); learn_input: learn B (else it is one, absorbed in C); dt_min, dt_max: initial step sizes, log-uniform."""

    state_size: int = 64
    kind: str = "lin"
    learn_input: bool = False
    use_glu: bool = False
    dt_min: float = 1e-3
    dt_max: float = 1e-1


@MIXERS.register("ssm")
class DiagonalStateSpace(RecurrentMixer):
    """S4D, the activation and the mixing of channels after it."""

    Options = SSMOptions
    label: ClassVar[str] = "S4D"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("log_dt", "log_A_real", "A_imag", "B", "D")
    keep_fp32: ClassVar[tuple[str, ...]] = ("log_dt", "log_A_real", "A_imag", "B", "C", "D")

    def __init__(self, config: Any, options: SSMOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        width, real = config.hidden_size, options.kind == "real"
        modes = options.state_size if real else options.state_size // 2
        weights = (width, modes) if real else (width, modes, 2)  # (real, imaginary)
        self.log_dt = nn.Parameter(torch.empty(width))
        self.log_A_real = nn.Parameter(torch.empty(width, modes))  # of -Re A, which keeps the system stable
        self.A_imag = None if real else nn.Parameter(torch.empty(width, modes))
        self.B = nn.Parameter(torch.empty(weights)) if options.learn_input else None
        self.C = nn.Parameter(torch.empty(weights))
        self.D = nn.Parameter(torch.empty(width))
        self.out_proj = nn.Linear(width, 2 * width if options.use_glu else width)

    @classmethod
    def validate(cls, config: Any, options: SSMOptions) -> None:
        if options.kind not in KINDS:
            raise choice_error("mixer ssm: kind", options.kind, KINDS)
        if options.state_size < 1 or (options.kind != "real" and options.state_size % 2):
            near = max(2, options.state_size + 1)
            raise ConfigError(
                f"mixer ssm: state_size {options.state_size} is not allowed; conjugate pairs need an even number, "
                f"nearest valid: {near}"
            )
        if not 0 < options.dt_min <= options.dt_max:
            raise ConfigError(
                f"mixer ssm: dt_min {options.dt_min} is not allowed; use a number in (0, dt_max = {options.dt_max}]"
            )

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        y = state.advance(
            diagonal_ssm,
            x,
            self.log_dt,
            -self.log_A_real.exp(),
            self.A_imag,
            self.C,
            self.B,
            self.D,
            num_valid=layout.num_valid,
            layout=layout,
        )
        out = self.out_proj(F.gelu(y))
        return F.glu(out, -1) if self.options.use_glu else out

    def cost(self, seq_len: int) -> MixerCost:
        """B u into the state and C s out of it: 4 D N FLOPs a token; D N fp32 numbers."""
        entries = self.config.hidden_size * self.options.state_size
        return MixerCost(mixing_flops=4 * entries * seq_len, decode_flops=4 * entries, state_bytes=4 * entries)

    def init_weights(self) -> None:
        width, modes = self.log_A_real.shape
        low, high = math.log(self.options.dt_min), math.log(self.options.dt_max)
        init.uniform_(self.log_dt, low, high)
        modes_n = torch.arange(modes, dtype=torch.float32)
        if self.A_imag is None:
            init.copy_(self.log_A_real, torch.log1p(modes_n).expand(width, -1))
        else:
            size = self.options.state_size
            inverse = size / math.pi * (size / (2 * modes_n + 1) - 1)
            frequencies = math.pi * modes_n if self.options.kind == "lin" else inverse
            init.constant_(self.log_A_real, math.log(0.5))
            init.copy_(self.A_imag, frequencies.expand(width, -1))
        if self.B is not None:
            one = torch.ones(()) if self.A_imag is None else torch.tensor([1.0, 0.0])
            init.copy_(self.B, one.expand(self.B.shape))
        init.normal_(self.C, std=1.0 if self.A_imag is None else math.sqrt(0.5))
        init.normal_(self.D)
