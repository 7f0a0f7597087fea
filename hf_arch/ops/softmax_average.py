"""A matrix state that is a running softmax average over time of the values (LightNet, Qin et al. 2024, arXiv
2405.21022): linear attention whose keys and decays come from the logsumexp of the keys so far.

Legend: B batch, T time, H heads, K key dim, V value dim. States are fp32, outputs have v's dtype.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from .linear_attention import linear_attention
from .logsumexp import EMPTY, KERNEL_MIN_GATE, time_softmax
from .recurrence import OPTION, ChunkedCall, Recurrence, default_scale

AverageState = tuple[Tensor, Tensor]


@dataclass(eq=False, repr=False)
class SoftmaxAverage(ChunkedCall[AverageState]):
    """S_t = exp(Z_{t-1} - Z_t) S_{t-1} + exp(k_t - Z_t) v_t^T, o_t = (scale q_t)^T S_t: averages over time.

    Z_t = logsumexp_{s <= t} k_s, so that row c of S_t is the average of the values so far with the weights softmax of
    their keys' entry c. A token with k = -inf and v = 0 leaves the state alone: padding is passed so.

    The output [B, T, H, V] has v's dtype; the state is (Z, S) in fp32 (fp64 for fp64 inputs). Chunks have 32 tokens.
    The kernel is that of linear attention.
    """

    q: Annotated[Tensor, "B T H K", "queries, any floating dtype"]
    k: Annotated[Tensor, "B T H K", "logits of the weights"]
    v: Annotated[Tensor, "B T H V", "values"]
    _: KW_ONLY
    scale: Annotated[float | None, OPTION, "of the queries; K^-0.5 if None"] = None

    states = ("B H K", "B H K V")
    output = "v"

    def empty_state(self) -> AverageState:
        total, averages = super().empty_state()
        return total.fill_(EMPTY), averages

    def naive(self) -> tuple[Tensor, AverageState]:
        def advance(state: AverageState, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, AverageState]:
            total, averages = state
            new_total = torch.logaddexp(total, k)
            old, new = (total - new_total).exp(), (k - new_total).exp()
            averages = old.unsqueeze(-1) * averages + new.unsqueeze(-1) * v.unsqueeze(-2)
            return (q.unsqueeze(-2) @ averages).squeeze(-2), (new_total, averages)

        query = self.q.to(self.dtype) * default_scale(self.scale, self.q)
        return self.each_token(advance, query, self.logits(), self.v)

    def chunk(self) -> tuple[Tensor, AverageState]:
        return self._through(linear_attention.chunk, chunk_size=self.chunk_size)

    def step(self) -> tuple[Tensor, AverageState]:
        return self._through(linear_attention.step)

    def kernel(self) -> tuple[Tensor, AverageState]:
        return self._through(linear_attention.kernel, min_gate=KERNEL_MIN_GATE)

    def logits(self) -> Tensor:
        return self.k.to(self.dtype).clamp(min=EMPTY)

    def _through(self, attend: Any, min_gate: float | None = None, **options: Any) -> tuple[Tensor, AverageState]:
        """A form of linear attention, with the keys and decays of the averages."""
        total, averages = (None, None) if self.state is None else self.state
        weights, gates, total = time_softmax(self.k.to(self.dtype), total, self.keep())
        o, averages = attend(
            self.q,
            weights,
            self.v,
            gates if min_gate is None else gates.clamp(min=min_gate),
            scale=self.scale,
            initial_state=averages,
            output_final_state=self.output_final_state,
            segment_ids=self.segment_ids,
            **options,
        )
        return o, (total, averages)


softmax_average = Recurrence(SoftmaxAverage, "softmax_average")
