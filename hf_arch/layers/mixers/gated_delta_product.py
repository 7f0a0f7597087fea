"""Gated DeltaProduct: several steps of the delta rule a token (Siems et al. 2025, arXiv 2502.10297).

    S^0 = exp(g_t) S_{t-1},   S^j = S^{j-1} + beta_{t,j} k_{t,j} (v_{t,j} - S^{j-1 T} k_{t,j})^T for j = 1..n
    S_t = S^n,   o_t = (q_t / sqrt(K))^T S_t,   y_t = W_o [ RMSNorm(o_t) * silu(W_g x_t) ]
    g_t = -exp(A) softplus(W_a x_t + b) (0 without the forget gate),   beta_{t,j} = sigmoid(W_b x_t)_j

with q, k, v = silu(conv(W x)) and q, k of length one. The transition is a product of n Householder-like matrices: with
`allow_neg_eigval` two of them can rotate a state, which more groups of state tracking need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import ConfigError
from ...core.options import options
from ...core.registry import MIXERS
from ...ops.delta_rule import delta_rule
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..state import LayerState
from .delta_heads import DeltaHeadsMixer, DeltaHeadsOptions, GroupedValueSizes


@options
class GatedDeltaProductOptions(DeltaHeadsOptions):
    """num_heads (of queries and keys) and head_dim (K): None takes the config's; V = expand_v K; num_v_heads: None =
    num_heads; num_householder: the n of the formula. dt_* shape the initial decays."""

    expand_v: float | int = 2.0
    gate_activation: str = "silu"
    num_householder: int = 2
    use_forget_gate: bool = True
    allow_neg_eigval: bool = True


@dataclass(frozen=True)
class ProductSizes(GroupedValueSizes):
    """Heads with keys and values for each of `steps` steps a token; the step is the outer index of channels."""

    steps: int

    @property
    def kv_key_dim(self) -> int:
        return self.steps * self.key_dim

    @property
    def kv_value_dim(self) -> int:
        return self.steps * self.value_dim

    def split(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, .] projections -> q [B, T, H, K], k [B, T, n, H, K] and v [B, T, n, Hv, V]."""
        k, v = k.unflatten(-1, (self.steps, -1)), v.unflatten(-1, (self.steps, -1))
        return super().split(q, k, v)


@MIXERS.register("gated_delta_product")
class GatedDeltaProduct(DeltaHeadsMixer):
    """Gated DeltaProduct, with grouped values."""

    Options = GatedDeltaProductOptions
    label: ClassVar[str] = "GDP"

    def __init__(self, config: Any, options: GatedDeltaProductOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        heads, steps = self.sizes.num_heads, options.num_householder
        self.state_products = 2 * steps + 1  # type: ignore[misc]
        self.b_proj = nn.Linear(config.hidden_size, steps * heads, bias=False)
        if options.use_forget_gate:
            self.a_proj = nn.Linear(config.hidden_size, heads, bias=False)
            self.build_decay(heads)
        self.build_output(options.use_output_gate, options.gate_activation)

    @classmethod
    def head_sizes(cls, config: Any, options: GatedDeltaProductOptions) -> ProductSizes:
        if options.num_householder < 1:
            raise ConfigError(f"num_householder: {options.num_householder} is not allowed; use an integer >= 1")
        sizes = super().head_sizes(config, options)
        return ProductSizes(
            sizes.num_heads, sizes.num_kv_heads, sizes.head_k_dim, sizes.head_v_dim, options.num_householder
        )

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = self.heads(x, layout, state)
        q, k = self.sizes.per_value_head(q), self.sizes.per_value_head(k, 3)
        beta = self.strength(self.b_proj(x)).unflatten(-1, (self.options.num_householder, -1))
        g = self.log_decay(self.a_proj(x), layout).squeeze(-1) if self.options.use_forget_gate else None
        rule = self.one_token if x.shape[1] == 1 else self.whole_row
        out, final = rule(q, k, v, beta, g, layout, state)
        state.write_recurrent(final)
        return self.read_out(x, out)

    def whole_row(
        self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, layout: SequenceLayout, state: LayerState
    ) -> tuple[Tensor, Tensor | None]:
        """The delta rule over the T n steps: the first of a token decays, the last reads."""
        steps, documents = self.options.num_householder, layout.segment_ids
        out, final = delta_rule(
            q.repeat_interleave(steps, 1),
            k.flatten(1, 2),
            v.flatten(1, 2),
            beta.flatten(1, 2),
            None if g is None else F.pad(g.unsqueeze(2), (0, 0, 0, steps - 1)).flatten(1, 2),
            initial_state=state.recurrent(),
            output_final_state=bool(state),
            segment_ids=None if documents is None else documents.repeat_interleave(steps, 1),
        )
        return out[:, steps - 1 :: steps], final

    def one_token(
        self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, layout: SequenceLayout, state: LayerState
    ) -> tuple[Tensor, Tensor | None]:
        """The same for T = 1, one single step after another."""
        out, current = v[:, 0], state.recurrent()
        for key, value, strength in zip(k.unbind(2), v.unbind(2), beta.unbind(2), strict=True):
            out, current = delta_rule(q, key, value, strength, g, initial_state=current, output_final_state=True)
            g = None
        return out, current

    def init_weights(self) -> None:
        if self.options.use_forget_gate:
            super().init_weights()
