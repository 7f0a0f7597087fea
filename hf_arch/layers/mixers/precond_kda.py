"""Preconditioned KDA (arXiv 2604.21100): Kimi Delta Attention that writes with a preconditioned key k~.

    S' = diag(exp g_t) S_{t-1},   S_t = S' + beta_t k~_t (v_t - S'^T k_t)^T

k~ is of `preconditioner.py`, one for each value head; the rest is of `kda.py`, but for one beta a query and key head.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.options import options
from ...core.registry import MIXERS
from ..layout import SequenceLayout
from ..state import LayerState
from .kda import KDAOptions, KimiDeltaAttention
from .preconditioner import PreconditionedMixer, PreconditionerOptions


@options
class PrecondKDAOptions(PreconditionerOptions, KDAOptions):
    """num_heads (of queries and keys) and head_dim (K): None takes the config's; V = expand_v K; num_v_heads: None =
    num_heads; lower_bound: what no log decay is below; squash_x and squash_eps shape the preconditioning; dt_*, A_min
    and log_atk_scale_init initial values."""

    A_min: float | int = 1


@MIXERS.register("precond_kda")
class PrecondKDA(PreconditionedMixer, KimiDeltaAttention):
    """Preconditioned KDA, with grouped values; `a_proj` makes the decays of the averages."""

    Options = PrecondKDAOptions
    label: ClassVar[str] = "PKDA"

    def __init__(self, config: Any, options: PrecondKDAOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.a_proj = nn.Linear(config.hidden_size, self.sizes.num_heads, bias=False)
        self.build_preconditioner(self.sizes.num_heads)

    def strengths(self) -> int:
        return self.sizes.num_kv_heads

    def written_key(self, x: Tensor, k: Tensor, layout: SequenceLayout, state: LayerState) -> Tensor:
        return self.precondition(x, k, self.a_proj(x), layout, state)
