"""The delta rule: a matrix state that is corrected towards each new value instead of only added to (DeltaNet).

    S' = exp(g_t) S_{t-1}      u_t = beta_t (v_t - S'^T k_t)      S_t = S' + k_t u_t^T      o_t = (scale q_t)^T S_t

Papers: DeltaNet in parallel (2406.06484), Gated DeltaNet (2412.06464), both on arXiv. In a chunk, with L the decays
between positions and p those from the chunk's start, the corrections solve a triangular system (WY form):

    (I + A) u = beta (v - p k S_0)        A_ij = beta_i L_ij k_i.k_j  for j < i

Legend: B batch, T time, H heads, K key dim, V value dim, N chunks, C chunk. States are fp32, outputs have v's dtype.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from .backend import needs_gradients, refuses_gated_gradients
from .chunks import chunk_view, from_chunks
from .delta_chunks import chunk_gated_delta
from .dplr_chunks import MAX_DECAY, chunk_dplr
from .native_delta import KERNELS, NativeDelta
from .norm import l2_norm
from .recurrence import LOG_DECAY, OPTION, ChunkedCall, Recurrence, default_scale
from .vector_decay import has_kernel


@dataclass(eq=False, repr=False)
class DeltaRule(ChunkedCall[Tensor]):
    """S' = exp(g_t) S_{t-1}, S_t = S' + beta_t k_t (v_t - S'^T k_t)^T, o_t = (scale q_t)^T S_t: the (gated) delta rule.

    With a decay per key channel it is that of KDA (arXiv:2510.26692), which is a `dplr_delta_rule` too.

    A token with k = v = 0, beta = 0 and g = 0 leaves the state alone wherever it stands: padding is passed so.
    With beta above 1 the transition has negative eigenvalues.

    The output [B, T, H, V] has v's dtype, the state is fp32 (fp64 for fp64 inputs). Chunks have 32 tokens.
    """

    q: Annotated[Tensor, "B T H K", "queries, any floating dtype"]
    k: Annotated[Tensor, "B T H K", "keys, l2-normalised unless `unit_eps` does it"]
    v: Annotated[Tensor, "B T H V", "values"]
    beta: Annotated[Tensor, "B T H", "the strength of the correction, in [0, 2]"]
    g: Annotated[Tensor | None, "B T H | B T H K", LOG_DECAY, "or None for no decay"] = None
    _: KW_ONLY
    scale: Annotated[float | None, OPTION, "of the queries; K^-0.5 if None"] = None
    min_log_decay: Annotated[float | None, OPTION, "as in `dplr_delta_rule`, of a decay per key channel"] = None
    unit_eps: Annotated[float | None, OPTION, "q and k are divided by sqrt(sum(x^2) + this); not if None"] = None

    states = ("B H K V",)
    output = "v"

    def naive(self) -> tuple[Tensor, Tensor]:
        def advance(
            state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor
        ) -> tuple[Tensor, Tensor]:
            state = (decay.unsqueeze(-1) if self.by_channel() else decay[..., None, None]) * state
            recalled = (k.unsqueeze(-2) @ state).squeeze(-2)
            correction = beta.unsqueeze(-1) * (v - recalled)
            state = state + k.unsqueeze(-1) * correction.unsqueeze(-2)
            return (q.unsqueeze(-2) @ state).squeeze(-2), state

        self.normalise()
        decay = torch.ones_like(self.beta, dtype=self.dtype) if self.g is None else self.g.to(self.dtype).exp()
        query = self.q.to(self.dtype) * default_scale(self.scale, self.q)
        return self.each_token(advance, query, self.k, self.v, self.beta, decay)

    def normalise(self) -> None:
        """For the forms that take q and k as they are."""
        if self.unit_eps is not None:
            self.q, self.k = l2_norm(self.q, self.unit_eps), l2_norm(self.k, self.unit_eps)
            self.unit_eps = None

    def by_channel(self) -> bool:
        """Whether each key channel has a decay of its own."""
        return self.g is not None and self.g.dim() == 4

    def _general(self, form: Any) -> tuple[Tensor, Tensor]:
        """A form of `dplr_delta_rule`, of a decay per key channel."""
        assert self.g is not None
        k, g = self.k.to(self.dtype), self.g.to(self.dtype)
        write = self.beta.to(self.dtype).unsqueeze(-1) * k
        return form(
            self.q,
            g,
            write,
            self.v,
            g.exp() * k,
            -write,
            scale=default_scale(self.scale, self.q),
            min_log_decay=self.min_log_decay,
            initial_state=self.initial_state,
            output_final_state=self.output_final_state,
            segment_ids=self.segment_ids,
        )

    def step(self) -> tuple[Tensor, Tensor]:
        self.normalise()
        if self.by_channel():
            return self._general(dplr_delta_rule.step)
        g, dtype = self.g, self.dtype
        query, key, value = (x.transpose(1, 2).to(dtype) for x in (self.q, self.k, self.v))  # [B, H, 1, .]
        strength = self.beta[:, 0, :, None, None].to(dtype)
        if self.state is None:
            new_state = key.mT * (value * strength)
        else:
            decay = None if g is None else g[:, 0, :, None, None].to(dtype).exp()
            recalled = key @ self.state if decay is None else (key @ self.state) * decay
            new_state = key.mT * ((value - recalled) * strength)
            new_state = new_state.add_(self.state) if decay is None else new_state.addcmul_(self.state, decay)
        o = (query * default_scale(self.scale, self.q)) @ new_state
        return o.transpose(1, 2), new_state

    def chunk(self) -> tuple[Tensor, Tensor]:
        if self.is_native():
            query, key, value, strength = (x.to(self.dtype) for x in (self.q, self.k, self.v, self.beta))
            decay = None if self.g is None else self.g.to(self.dtype)
            given = query, key, None, None, strength, decay, self.keep(), value, self.start_state()
            return NativeDelta.apply(*given, default_scale(self.scale, query), self.unit_eps)
        self.normalise()
        if self.by_channel():
            return self._general(partial(dplr_delta_rule.chunk, chunk_size=self.chunk_size))
        chunk = self.chunk_length()
        q, k, v = (chunk_view(x, chunk) for x in (self.q, self.k, self.v))
        beta, g = (None if x is None else chunk_view(x.unsqueeze(-1), chunk) for x in (self.beta, self.g))
        scale = default_scale(self.scale, self.q)
        o, state = chunk_gated_delta(q, k, v, beta, g, self.keep_chunks(), self.start_state(), scale)
        return from_chunks(o, self.sizes["T"], self.v.dtype), state

    def is_native(self) -> bool:
        """Whether the chunk form is the C kernel."""
        given = (self.q, self.k, self.v, self.beta, self.g, self.state)
        return self.dtype == torch.float32 and has_kernel(KERNELS, (self.sizes["K"], self.sizes["V"]), *given)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Without gates in half precision a kernel of its own, which refuses fp32."""
        self.normalise()
        if self.by_channel():
            return self._general(dplr_delta_rule.kernel)
        v, beta, g = self.v, self.beta, self.g
        arrays = {"q": self.q.to(v.dtype), "k": self.k.to(v.dtype), "v": v, "beta": beta.to(v.dtype)}
        if g is None and v.dtype != torch.float32:
            return self.on_fla("delta_rule.chunk_delta_rule", arrays, scale=self.scale)
        arrays["g"] = torch.zeros_like(beta, dtype=torch.float32) if g is None else g
        if refuses_gated_gradients() and needs_gradients(*arrays.values(), self.state):
            arrays["g"] = arrays["g"].float().unsqueeze(-1).expand_as(self.k).contiguous()
            scale = default_scale(self.scale, self.q)
            return self.on_fla("kda.chunk_kda", arrays, scale=scale)
        return self.on_fla("gated_delta_rule.chunk_gated_delta_rule", arrays, scale=self.scale)


delta_rule = Recurrence(DeltaRule, "delta_rule")


@dataclass(eq=False, repr=False)
class DplrDeltaRule(ChunkedCall[Tensor]):
    """S_t = diag(exp w_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T, o_t = (scale r_t)^T S_t: any rank-one correction.

    The delta rule with a transition of any diagonal plus any rank-one matrix (RWKV7, arXiv:2503.14456, with a = -kappa
    and b = kappa times its in-context rate). a reads the state before the decay. The gated delta rule with a decay per
    key channel that erases after the decay (KDA) has k <- beta k, a = exp(w) k and b = -beta k.

    A token with k = v = a = b = 0 and w = 0 leaves the state alone wherever it stands.

    The output [B, T, H, V] has v's dtype, the state is fp32 (fp64 for fp64 inputs). Chunks have 32 tokens.
    """

    r: Annotated[Tensor, "B T H K", "queries, any floating dtype"]
    w: Annotated[Tensor, "B T H K", LOG_DECAY]
    k: Annotated[Tensor, "B T H K", "keys"]
    v: Annotated[Tensor, "B T H V", "values"]
    a: Annotated[Tensor, "B T H K", "what reads the state before the decay"]
    b: Annotated[Tensor, "B T H K", "what writes that reading back"]
    _: KW_ONLY
    scale: Annotated[float, OPTION, "of r"] = 1.0
    min_log_decay: Annotated[float | None, OPTION, "what no w is below: mild decays cost half as much"] = None

    states = ("B H K V",)
    output = "v"

    def naive(self) -> tuple[Tensor, Tensor]:
        def advance(
            state: Tensor, r: Tensor, decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor
        ) -> tuple[Tensor, Tensor]:
            recalled = a.unsqueeze(-2) @ state
            update = b.unsqueeze(-1) * recalled + k.unsqueeze(-1) * v.unsqueeze(-2)
            state = torch.addcmul(update, decay.unsqueeze(-1), state)
            return (r.unsqueeze(-2) @ state).squeeze(-2), state

        read, decay = self.r.to(self.dtype) * self.scale, self.w.to(self.dtype).exp()
        return self.each_token(advance, read, decay, self.k, self.v, self.a, self.b)

    def chunk(self) -> tuple[Tensor, Tensor]:
        if self.is_native():
            r, k, a, b, w, v = (x.to(self.dtype) for x in (self.r, self.k, self.a, self.b, self.w, self.v))
            return NativeDelta.apply(r, k, a, b, None, w, self.keep(), v, self.start_state(), self.scale)
        chunk = self.chunk_length()
        bounded = self.min_log_decay is not None and -self.min_log_decay * chunk <= MAX_DECAY
        arrays = (chunk_view(x, chunk) for x in (self.r, self.w, self.k, self.v, self.a, self.b))
        o, state = chunk_dplr(*arrays, self.keep_chunks(), self.start_state(), self.scale, bounded)
        return from_chunks(o, self.sizes["T"], self.v.dtype), state

    def is_native(self) -> bool:
        """Whether the chunk form is the C kernel."""
        given = (self.r, self.w, self.k, self.v, self.a, self.b, self.state)
        return self.dtype == torch.float32 and has_kernel(KERNELS, (self.sizes["K"], self.sizes["V"]), *given)

    def kernel(self) -> tuple[Tensor, Tensor]:
        arrays = {name: x.to(self.v.dtype) for name, x in zip("qkab", (self.r, self.k, self.a, self.b), strict=True)}
        arrays |= {"v": self.v, "gk": self.w}
        return self.on_fla("generalized_delta_rule.chunk_dplr_delta_rule", arrays, scale=self.scale)


dplr_delta_rule = Recurrence(DplrDeltaRule, "dplr_delta_rule")
