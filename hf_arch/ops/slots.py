"""Attention over a bounded number of slots: a key memory and a value memory, with a softmax over the slots between.

    Kc_t = Kc_{t-1} diag(exp f_t) + k_t s_t^T          p_t = softmax(scale Kc_t^T q_t)
    Vc_t = diag(exp f_t) Vc_{t-1} + s_t v_t^T          o_t = Vc_t^T p_t

Gated slot attention (GSA, arXiv:2409.07146) learns the forget gates f and writes with s = 1 - exp f. Attention with
bounded-memory control (ABC, arXiv:2110.02488) writes each token with a softmax over time, per slot: with
L_t = logsumexp_{i <= t} s_i, that is f_t = L_{t-1} - L_t and the write weight exp(s_t - L_t), both exponents <= 0.

Legend: B batch, T time, H heads, K key dim, V value dim, M slots, N chunks, C chunk. States are fp32.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from .chunks import from_chunks, to_chunks
from .logsumexp import EMPTY, KERNEL_MIN_GATE, time_softmax
from .recurrence import LOG_DECAY, OPTION, ChunkedCall, Recurrence, default_scale
from .value_decay import NativeValueDecay, chunk_value_decay
from .vector_decay import KERNELS, NativeVectorDecay, chunk_vector_decay, has_kernel

SlotState = tuple[Tensor, Tensor]
AveragesState = tuple[Tensor, Tensor, Tensor]


@dataclass(eq=False, repr=False)
class GatedSlotAttention(ChunkedCall[SlotState]):
    """Kc_t = Kc_{t-1} diag(exp f_t) + k_t s_t^T, Vc_t = diag(exp f_t) Vc_{t-1} + s_t v_t^T: M slots, gated.

    The output is o_t = Vc_t^T softmax(scale Kc_t^T q_t).

    A token with k = v = s = 0 and f = 0 leaves the state alone wherever it stands: padding is passed so.

    The output [B, T, H, V] has v's dtype, the state (Kc, Vc) is fp32 (fp64 for fp64 inputs). Chunks have 32 tokens.
    """

    q: Annotated[Tensor, "B T H K", "queries, any floating dtype"]
    k: Annotated[Tensor, "B T H K", "keys"]
    v: Annotated[Tensor, "B T H V", "values"]
    s: Annotated[Tensor, "B T H M", "write weights"]
    f: Annotated[Tensor, "B T H M", LOG_DECAY, "the forget gates"]
    _: KW_ONLY
    scale: Annotated[float, OPTION, "of the queries"] = 1.0

    states = ("B H K M", "B H M V")
    output = "v"

    def naive(self) -> tuple[Tensor, SlotState]:
        def advance(
            state: SlotState, q: Tensor, k: Tensor, v: Tensor, s: Tensor, decay: Tensor
        ) -> tuple[Tensor, SlotState]:
            keys = torch.addcmul(k.unsqueeze(-1) * s.unsqueeze(-2), decay.unsqueeze(-2), state[0])
            values = torch.addcmul(s.unsqueeze(-1) * v.unsqueeze(-2), decay.unsqueeze(-1), state[1])
            return _read_slots(q, keys, values), (keys, values)

        query, decay = self.q.to(self.dtype) * self.scale, self.f.to(self.dtype).exp()
        return self.each_token(advance, query, self.k, self.v, self.s, decay)

    def chunk(self) -> tuple[Tensor, SlotState]:
        """Two chunked passes of linear attention, decaying along the slots; no decay is too strong."""
        keys, values = self.start_state()
        arrays = (self.q, self.k, self.s, self.f, self.v)
        sides = self.sizes["M"], max(self.sizes["K"], self.sizes["V"])
        if self.dtype == torch.float32 and has_kernel(KERNELS, sides, *arrays, keys, values):
            query, key, write, forget, value = (x.to(self.dtype) for x in arrays)
            scores, keys = NativeValueDecay.apply(query * self.scale, key, forget, self.keep(), write, keys)
            o, values = NativeVectorDecay.apply(scores.softmax(-1), write, forget, self.keep(), value, None, values)
            return o, (keys, values)
        chunk, keep = self.chunk_length(), self.keep_chunks()
        query, key, write, forget = (to_chunks(x, chunk, self.dtype) for x in arrays[:4])
        scores, keys = chunk_value_decay(query * self.scale, key, write, forget, keep, keys)
        value = to_chunks(self.v, chunk, self.dtype)
        o, values = chunk_vector_decay(scores.softmax(-1), write, forget, keep, value, None, values, 1.0)
        return from_chunks(o, self.sizes["T"], self.v.dtype), (keys, values)

    def kernel(self) -> tuple[Tensor, SlotState]:
        arrays = {name: x.to(self.v.dtype) for name, x in zip("qks", (self.q, self.k, self.s), strict=True)}
        return self.on_fla("gsa.chunk_gsa", {**arrays, "v": self.v, "g": self.f}, scale=self.scale)


@dataclass(eq=False, repr=False)
class AbcAttention(ChunkedCall[AveragesState]):
    """Slots that are running averages over time of keys and values, weighted with the softmax of s over time.

    That is gated slot attention with the forget gates L_{t-1} - L_t and the write weights exp(s_t - L_t), where
    L_t = logsumexp_{i <= t} s_i. A token with s = -inf has no weight: padding is passed so.

    The output [B, T, H, V] has v's dtype; the state is (L, Kc, Vc) in fp32 (fp64 for fp64 inputs). Chunks have 32
    tokens. The kernel is that of gated slot attention.
    """

    q: Annotated[Tensor, "B T H K", "queries, any floating dtype"]
    k: Annotated[Tensor, "B T H K", "keys"]
    v: Annotated[Tensor, "B T H V", "values"]
    s: Annotated[Tensor, "B T H M", "logits of the write weights"]
    _: KW_ONLY
    scale: Annotated[float | None, OPTION, "of the queries; K^-0.5 if None"] = None

    states = ("B H M", "B H K M", "B H M V")
    output = "v"

    def empty_state(self) -> AveragesState:
        total, keys, values = super().empty_state()
        return total.fill_(EMPTY), keys, values

    def naive(self) -> tuple[Tensor, AveragesState]:
        def advance(state: AveragesState, q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, AveragesState]:
            total, keys, values = state
            new_total = torch.logaddexp(total, s)
            old, new = (total - new_total).exp(), (s - new_total).exp()
            keys = old.unsqueeze(-2) * keys + k.unsqueeze(-1) * new.unsqueeze(-2)
            values = old.unsqueeze(-1) * values + new.unsqueeze(-1) * v.unsqueeze(-2)
            return _read_slots(q, keys, values), (new_total, keys, values)

        query = self.q.to(self.dtype) * default_scale(self.scale, self.q)
        return self.each_token(advance, query, self.k, self.v, self.logits())

    def chunk(self) -> tuple[Tensor, AveragesState]:
        return self._through(gated_slot_attention.chunk, chunk_size=self.chunk_size)

    def step(self) -> tuple[Tensor, AveragesState]:
        return self._through(gated_slot_attention.step)

    def kernel(self) -> tuple[Tensor, AveragesState]:
        return self._through(gated_slot_attention.kernel, min_gate=KERNEL_MIN_GATE)

    def logits(self) -> Tensor:
        return self.s.to(self.dtype).clamp(min=EMPTY)

    def _through(self, gated: Any, min_gate: float | None = None, **options: Any) -> tuple[Tensor, AveragesState]:
        """A form of gated slot attention, with the gates and weights of the averages."""
        before = None if self.state is None else self.state[0]
        weights, gates, total = time_softmax(self.s.to(self.dtype), before, self.keep())
        o, state = gated(
            self.q,
            self.k,
            self.v,
            weights,
            gates if min_gate is None else gates.clamp(min=min_gate),
            scale=default_scale(self.scale, self.q),
            initial_state=None if self.state is None else self.state[1:],
            output_final_state=self.output_final_state,
            segment_ids=self.segment_ids,
            **options,
        )
        return o, (total, *(state or ()))


def _read_slots(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q^T keys) values for one token."""
    p = (q.unsqueeze(-2) @ keys).softmax(-1)
    return (p @ values).squeeze(-2)


gated_slot_attention = Recurrence(GatedSlotAttention, "gated_slot_attention")
abc_attention = Recurrence(AbcAttention, "abc_attention")
