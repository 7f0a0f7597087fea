"""Log-Linear Mamba-2: Mamba-2 whose past is read in buckets of 1, 2, 4, ... tokens (Guo et al. 2025, arXiv 2506.04761).

    [z, xBC, d, l] = W_in u,   dt = softplus(d + b),   A = -exp(A_log),   lam_{t,i} = softplus(L_i l_{t,i})
    y_t = sum_{s <= t} exp(sum_{r = s+1..t} A dt_r) lam_{t, level(t, s)} (C_t . B_s) dt_s x_s + D x_t

with x, B, C = silu(conv(xBC)) and level(t, s) = bit_length(t xor s) of the positions in a document: level 0 is the
token itself, level i a bucket of 2^(i-1) tokens. The state is one matrix a bucket. The largest bucket also takes what
would fall into larger ones.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import options
from ...core.registry import MIXERS
from ...ops.log_linear import count_positions, log_linear_attention
from ...ops.precision import state_dtype
from ..layout import SequenceLayout
from ..state import LayerState
from .base import MixerCost
from .mamba2 import Mamba2Options, StateSpaceDual


@options
class LogLinearMamba2Options(Mamba2Options):
    """Of Mamba-2. `num_levels`: the token itself and its buckets, the largest of 2^(num_levels - 2) tokens."""

    num_levels: int = 15


@MIXERS.register("log_linear_mamba2")
class LogLinearMamba2(StateSpaceDual):
    """Log-Linear Mamba-2."""

    Options = LogLinearMamba2Options
    label: ClassVar[str] = "LogLinearMamba2"
    no_weight_decay: ClassVar[tuple[str, ...]] = (*StateSpaceDual.no_weight_decay, "L")
    keep_fp32: ClassVar[tuple[str, ...]] = (*StateSpaceDual.keep_fp32, "L")

    def __init__(self, config: Any, options: LogLinearMamba2Options, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.L = nn.Parameter(torch.empty(self.num_heads, options.num_levels))

    @classmethod
    def validate(cls, config: Any, options: LogLinearMamba2Options) -> None:  # type: ignore[override]
        super().validate(config, options)
        if not 2 <= options.num_levels <= 31:
            raise ConfigError(
                f"mixer log_linear_mamba2: num_levels {options.num_levels} is not allowed; use an integer from 2 to 31"
            )

    def extra_width(self) -> int:
        return self.num_heads * self.options.num_levels

    def recur(
        self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, extra: Tensor, layout: SequenceLayout, state: LayerState
    ) -> Tensor:
        dtype = state_dtype(extra)
        levels = F.softplus(extra.to(dtype).unflatten(-1, self.L.shape) * self.L.to(dtype))
        groups = self.num_heads // B.shape[2]
        count = state.recurrent(1)
        start = None if count is None else count.squeeze(1)
        out, final = log_linear_attention(
            C.repeat_interleave(groups, 2),
            B.repeat_interleave(groups, 2),
            x.to(dtype) * dt.unsqueeze(-1),
            -self.A_log.to(dtype).exp() * dt,
            levels[..., 0],
            levels[..., 1:],
            start=start,
            valid=layout.mask,
            scale=1.0,
            initial_state=state.recurrent(),
            output_final_state=bool(state),
            segment_ids=layout.segment_ids,
        )
        if state:
            state.write_recurrent(final)
            state.write_recurrent(count_after(x, start, layout), 1)
        D = self.D.to(dtype).view(self.num_heads, -1)
        return (out + D * x).to(x.dtype)

    def cost(self, seq_len: int) -> MixerCost:
        """B x^T once, C^T S for each bucket; one state a bucket, and the number of tokens."""
        base, buckets = super().cost(seq_len), self.options.num_levels - 1
        entries = self.inner * self.options.state_size
        extra = 2 * (buckets - 1) * entries
        return MixerCost(
            base.mixing_flops + extra * seq_len,
            base.decode_flops + extra,
            base.state_bytes + 4 * entries * (buckets - 1) + 4,
        )

    def init_weights(self) -> None:
        super().init_weights()
        init.copy_(self.A_log, torch.arange(1, self.num_heads + 1, dtype=torch.float32).log())
        init.ones_(self.L)


def count_after(x: Tensor, start: Tensor | None, layout: SequenceLayout) -> Tensor:
    """[B, 1] in fp32: how many tokens the last document of each row has after this call."""
    return count_positions(x.shape[:2], start, layout.mask, layout.segment_ids, x.device)[:, -1:].float()
