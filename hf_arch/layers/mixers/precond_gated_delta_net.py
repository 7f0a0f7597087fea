"""Preconditioned Gated DeltaNet (arXiv 2604.21100): Gated DeltaNet that writes with a preconditioned key k~.

    S' = exp(g_t) S_{t-1},   S_t = S' + beta_t k~_t (v_t - S'^T k_t)^T

k~ is of `preconditioner.py`, one for each query and key head; the rest is of `gated_delta_net.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.options import options
from ...core.registry import MIXERS
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..state import LayerState
from .preconditioner import PreconditionedMixer, PreconditionerOptions


@options
class PrecondGatedDeltaNetOptions(PreconditionerOptions):
    """num_heads (of queries and keys) and head_dim (K): None takes the config's; V = expand_v K; num_v_heads: None =
    num_heads; squash_x and squash_eps shape the preconditioning; dt_*, A_min and log_atk_scale_init initial values."""

    expand_v: float | int = 2.0
    gate_activation: str = "silu"


@MIXERS.register("precond_gated_delta_net")
class PrecondGatedDeltaNet(PreconditionedMixer):
    """Preconditioned Gated DeltaNet, with grouped values."""

    Options = PrecondGatedDeltaNetOptions
    label: ClassVar[str] = "PGDN"

    def __init__(self, config: Any, options: PrecondGatedDeltaNetOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        sizes, width = self.sizes, config.hidden_size
        self.a_proj = nn.Linear(width, sizes.num_heads, bias=False)
        self.b_proj = nn.Linear(width, sizes.num_heads, bias=False)
        self.a_atk_proj = nn.Linear(width, sizes.num_kv_heads, bias=False)
        self.build_decay(sizes.num_heads)
        self.build_preconditioner(sizes.num_kv_heads)
        self.build_output(options.use_output_gate, options.gate_activation)

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.heads(x, layout, state)
        write = self.precondition(x, k, self.a_atk_proj(x), layout, state)
        q, k, write = (self.sizes.per_value_head(part) for part in (q, k, write))
        write = self.strength(self.b_proj(x)).unsqueeze(-1) * write
        g = self.log_decay(self.a_proj(x), layout)
        return self.read_out(x, self.erase_and_write(q, write, v, g, g.exp() * k, layout, state))
