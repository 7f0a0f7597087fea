"""Mamba-3: a state space with a trapezoidal rule, turning keys, and several writes a token (Lahoti et al. 2026, arXiv
2603.15569).

    dt = softplus(W_dt u + b),   A = -max(softplus(W_A u), A_floor),   alpha = exp(A dt),   lam = sigmoid(W_l u)
    theta_t = theta_{t-1} + pi dt_t tanh(W_a u_t),   B, C = rotate(RMSNorm(W u) + bias, theta)
    S_t = alpha_t (S_{t-1} + (1 - lam_t) dt_t sum_r B_{t-1,r} x_{t-1,r}^T) + lam_t dt_t sum_r B_{t,r} x_{t,r}^T
    y_{t,r} = C_{t,r}^T S_t + D x_{t,r},   out = W_out sum_r o_r y_{t,r} silu(z_{t,r})

with S of N x P numbers a head; x_r and z_r are x and z times learned weights of each of the R ranks (`is_mimo`; without
it R = 1 and there are none). Only differences of theta matter, so that a document needs no fresh angle. Queries are C,
keys B. Pairs of features turn: neighbours with one rank, halves with several.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS
from ...ops.documents import document_keep
from ...ops.norm import rms_norm
from ...ops.precision import state_dtype
from ...ops.rank_attention import rank_attention
from ..contract import LayerContext
from ..initial import FLA
from ..layout import SequenceLayout
from ..norms import ArchRMSNorm
from ..state import LayerState
from .base import MixerCost, RecurrentMixer, divide
from .mamba import init_step_bias


@options
class Mamba3Options(Options):
    """head_dim is P, state_size N; B and C are shared by the heads of a group. rope_fraction: the share of N that
    turns. mimo_rank: R where `is_mimo`. use_norm: a norm over each head before the gate. dt_min, dt_max, dt_init_floor
    and `rescale_out_proj` (by 1 / sqrt(layers)) shape the initial weights."""

    head_dim: int = 64
    state_size: int = 128
    expand: float | int = 2
    n_groups: int = 1
    rope_fraction: float | int = 0.5
    A_floor: float = 1e-4
    is_mimo: bool = False
    mimo_rank: int = 4
    use_norm: bool = False
    proj_bias: bool = False
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_init_floor: float = 1e-4
    rescale_out_proj: bool = True


class PerHeadRMSNorm(ArchRMSNorm):
    """RMSNorm of each head by itself with a weight for every channel: [..., H, P] -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.view(x.shape[-2:]), self.eps)  # type: ignore[union-attr]


@MIXERS.register("mamba3")
class TrapezoidalStateSpace(RecurrentMixer):
    """Mamba-3, with one write and read a token (SISO) or several (MIMO)."""

    Options = Mamba3Options
    label: ClassVar[str] = "Mamba3"
    inits: ClassVar = FLA
    no_weight_decay: ClassVar[tuple[str, ...]] = ("D", "dt_bias", "B_bias", "C_bias", "mimo_x", "mimo_z", "mimo_o")
    keep_fp32: ClassVar[tuple[str, ...]] = ("D", "dt_bias")

    def __init__(self, config: Any, options: Mamba3Options, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.inner = int(options.expand * config.hidden_size)
        self.num_heads = divide(self.inner, options.head_dim, "head_dim", "expand * hidden_size =")
        self.rank = options.mimo_rank if options.is_mimo else 1
        self.pairs = int(options.state_size * options.rope_fraction) // 2
        group_width = options.state_size * options.n_groups * self.rank
        self.splits = [self.inner, self.inner, group_width, group_width, *[self.num_heads] * 3, self.pairs]
        self.in_proj = nn.Linear(config.hidden_size, sum(self.splits), bias=options.proj_bias)
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.B_bias = nn.Parameter(torch.empty(self.num_heads, self.rank, options.state_size))
        self.C_bias = nn.Parameter(torch.empty(self.num_heads, self.rank, options.state_size))
        self.B_norm = ArchRMSNorm(options.state_size, config.norm_eps)
        self.C_norm = ArchRMSNorm(options.state_size, config.norm_eps)
        self.D = nn.Parameter(torch.empty(self.num_heads))
        if options.is_mimo:
            shape = (self.num_heads, self.rank, options.head_dim)
            self.mimo_x, self.mimo_z, self.mimo_o = (nn.Parameter(torch.empty(shape)) for _ in range(3))
        if options.use_norm:
            self.norm = PerHeadRMSNorm(self.inner, config.norm_eps)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=options.proj_bias)

    @classmethod
    def validate(cls, config: Any, options: Mamba3Options) -> None:
        for name in ("head_dim", "state_size", "n_groups", "mimo_rank"):
            if getattr(options, name) < 1:
                raise ConfigError(f"mixer mamba3: {name} {getattr(options, name)} is not allowed; use an integer >= 1")
        if not 0 <= options.rope_fraction <= 1:
            raise ConfigError(f"mixer mamba3: rope_fraction {options.rope_fraction} is not allowed; use 0 to 1")
        if options.is_mimo and options.state_size % 2:
            raise ConfigError(
                f"mixer mamba3: state_size {options.state_size} is odd, MIMO rotates halves; use an even number"
            )
        if options.A_floor < 0:
            raise ConfigError(f"mixer mamba3: A_floor {options.A_floor} is not allowed; use a number >= 0")
        heads = divide(int(options.expand * config.hidden_size), options.head_dim, "head_dim", "expand * hidden_size =")
        divide(heads, options.n_groups, "n_groups", "the number of heads")

    @classmethod
    def effective(cls, config: Any, options: Mamba3Options) -> dict[str, Any]:
        values = super().effective(config, options)
        for name in ("dt_min", "dt_max", "dt_init_floor", "rescale_out_proj"):
            del values[name]
        return {**values, "mimo_rank": options.mimo_rank if options.is_mimo else 1}

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        z, hidden, B, C, dt, A, trap, angles = self.in_proj(x).split(self.splits, -1)
        dtype = state_dtype(x)
        dt = layout.zero_padding(F.softplus(dt.to(dtype) + self.dt_bias.to(dtype)))  # 0 leaves the state alone
        decay = -F.softplus(A.to(dtype)).clamp_min(self.options.A_floor) * dt
        now = trap.to(dtype).sigmoid() * dt
        hidden = layout.zero_padding(hidden).unflatten(-1, (self.num_heads, -1))
        start = state.recurrents(4)
        matrix, angle, last_key, last_input = (None,) * 4 if start is None else start

        turn = dt.unsqueeze(-1) * (math.pi * torch.tanh(angles.to(dtype))).unsqueeze(2)
        theta = turn.cumsum(1) if angle is None else turn.cumsum(1) + angle.unsqueeze(1)
        key = self._rotate(self._ranks(B, self.B_norm, self.B_bias), theta)
        query = self._rotate(self._ranks(C, self.C_norm, self.C_bias), theta)

        keys, inputs = _after(last_key, key), _after(last_input, hidden.to(dtype))
        before = ((dt - now) * decay.exp())[:, :, None, :, None] * keys[:, :-1]  # of the token before, trapezoidal
        if layout.segment_ids is not None:
            before = before * document_keep(layout.segment_ids, dtype)[..., None, None, None]
        written = torch.cat([before, now[:, :, None, :, None] * key], 2)
        values = torch.cat([self._of_rank(inputs[:, :-1], "mimo_x"), self._of_rank(inputs[:, 1:], "mimo_x")], 2)
        out, final = rank_attention(
            query,
            written,
            values,
            decay,
            initial_state=matrix,
            output_final_state=bool(state),
            segment_ids=layout.segment_ids,
        )
        if state:
            ends = (_at_end(each, layout.num_valid) for each in (keys, inputs))
            state.write_recurrents((final, torch.remainder(theta[:, -1], 2 * math.pi), *ends))  # type: ignore[arg-type]

        out = out + self.D.to(dtype).unsqueeze(-1) * values[:, :, self.rank :]
        if self.options.use_norm:
            out = self.norm(out)
        out = out * F.silu(self._of_rank(z.unflatten(-1, (self.num_heads, -1)).to(dtype), "mimo_z"))
        if self.options.is_mimo:
            out = out * self.mimo_o.transpose(0, 1).to(dtype)
        return self.out_proj(out.sum(2).flatten(2).to(x.dtype))

    def _ranks(self, x: Tensor, norm: nn.Module, bias: Tensor) -> Tensor:
        """[B, T, R G N] -> [B, T, R, H, N] in the dtype of states, with its norm and each head's bias."""
        groups = self.options.n_groups
        x = norm(x.unflatten(-1, (self.rank, groups, -1))).repeat_interleave(self.num_heads // groups, 3)
        return x.to(state_dtype(x)) + bias.transpose(0, 1)

    def _rotate(self, x: Tensor, theta: Tensor) -> Tensor:
        """x [B, T, R, H, N] with its first pairs of features turned by theta [B, T, H, pairs]."""
        cos, sin, count = theta.cos().unsqueeze(2), theta.sin().unsqueeze(2), self.pairs
        halves = self.options.is_mimo
        if halves:
            first, second = x.chunk(2, -1)
        else:
            first, second = x[..., 0 : 2 * count : 2], x[..., 1 : 2 * count : 2]
        u, v = first[..., :count], second[..., :count]
        u, v = u * cos - v * sin, u * sin + v * cos
        if halves:
            return torch.cat([u, first[..., count:], v, second[..., count:]], -1)
        return torch.cat([torch.stack([u, v], -1).flatten(-2), x[..., 2 * count :]], -1)

    def _of_rank(self, x: Tensor, weight: str) -> Tensor:
        """[B, T, H, P] -> [B, T, R, H, P], times the weight of each rank."""
        x = x.unsqueeze(2)
        return x * getattr(self, weight).transpose(0, 1).to(x.dtype) if self.options.is_mimo else x

    def cost(self, seq_len: int) -> MixerCost:
        """Writes of this token and the one before and a read of each rank, 6 N P R a head and token. N P fp32 numbers a
        head, its angles, and the last token's B and x."""
        state, rank = self.options.state_size, self.rank
        per_token = 6 * self.inner * state * rank
        entries = self.inner * (state + 1) + self.num_heads * (self.pairs + rank * state)
        return MixerCost(mixing_flops=per_token * seq_len, decode_flops=per_token, state_bytes=4 * entries)

    def init_weights(self) -> None:
        init_step_bias(self.dt_bias, self.options)
        for weight in (self.B_bias, self.C_bias, self.D):
            init.ones_(weight)
        if self.options.is_mimo:
            init.constant_(self.mimo_x, 1 / self.rank)
            init.constant_(self.mimo_o, 1 / self.rank)
            init.ones_(self.mimo_z)
        if self.options.rescale_out_proj:  # torch's rule for Linear, smaller the deeper the model
            bound = (self.inner * self.config.num_hidden_layers) ** -0.5
            init.uniform_(self.out_proj.weight, -bound, bound)


def _after(last: Tensor | None, x: Tensor) -> Tensor:
    """x [B, T, ...] behind the last token of the call before (zeros without one): [B, T + 1, ...]."""
    last = torch.zeros_like(x[:, 0]) if last is None else last.to(x.dtype)
    return torch.cat([last.unsqueeze(1), x], 1)


def _at_end(x: Tensor, num_valid: Tensor | None) -> Tensor:
    """The last valid token of each row of `_after`'s x."""
    if num_valid is None:
        return x[:, -1]
    return x[torch.arange(len(x), device=x.device), num_valid]
