"""Gated linear attention: a matrix state that decays and takes in outer products (GLA, RetNet, HGRN2, RWKV6, SSD).

    S_t = diag(exp g_t) S_{t-1} + k_t v_t^T          o_t = (scale q_t)^T S_t
    with a bonus u (RWKV6):                          o_t = (scale q_t)^T (S_{t-1} + diag(u) k_t v_t^T)

Papers: linear attention (2006.16236), RetNet (2307.08621), GLA (2312.06635), RWKV6 (2404.05892), all on arXiv.
Legend: B batch, T time, H heads, K key dim, V value dim, N chunks, C chunk. States are fp32, outputs have v's dtype.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from .backend import needs_gradients, refuses_gated_gradients
from .chunk_states import chunk_states
from .chunks import chunk_view, from_chunks, to_chunks
from .decay import decay_products
from .recurrence import LOG_DECAY, OPTION, ChunkedCall, Recurrence, default_scale
from .vector_decay import KERNELS, NativeVectorDecay, chunk_vector_decay, has_kernel

SCALAR_CHUNK = 64
VECTOR_CHUNK = 32


@dataclass(eq=False, repr=False)
class LinearAttention(ChunkedCall[Tensor]):
    """S_t = diag(exp g_t) S_{t-1} + k_t v_t^T, o_t = (scale q_t)^T S_t: a matrix state that decays and adds.

    With a bonus u the current token is read with that weight and the state before its decay:
    o_t = (scale q_t)^T (S_{t-1} + diag(u) k_t v_t^T).

    A token with k = v = 0 and g = 0 leaves the state alone wherever it stands: padding is passed so. (A constant
    decay [H] acts at every token; write it out as [B, T, H] to have padding after the first valid token.)

    The output [B, T, H, V] has v's dtype, the state is fp32 (fp64 for fp64 inputs). Chunks have 64 tokens for
    scalar and 32 for vector decays.
    """

    q: Annotated[Tensor, "B T H K", "queries, any floating dtype"]
    k: Annotated[Tensor, "B T H K", "keys"]
    v: Annotated[Tensor, "B T H V", "values"]
    g: Annotated[
        Tensor | None, "H | B T H | B T H K", LOG_DECAY, "constant per head, scalar per step, or a vector; None: none"
    ] = None
    _: KW_ONLY
    bonus: Annotated[Tensor | None, "H K", "weight of the current token"] = None
    scale: Annotated[float | None, OPTION, "of the queries; K^-0.5 if None"] = None

    states = ("B H K V",)
    output = "v"

    def naive(self) -> tuple[Tensor, Tensor]:
        def advance(state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
            update = k.unsqueeze(-1) * v.unsqueeze(-2)
            new = decay.unsqueeze(-1) * state + update
            read = new if bonus is None else state + bonus.unsqueeze(-1) * update
            return (q.unsqueeze(-2) @ read).squeeze(-2), new

        bonus = None if self.bonus is None else self.bonus.to(self.dtype)
        g = self.decay_per_step()
        decay = (g if g.dim() == 4 else g.unsqueeze(-1)).to(self.dtype).exp().expand(*self.q.shape[:3], -1)
        query = self.q.to(self.dtype) * default_scale(self.scale, self.q)
        return self.each_token(advance, query, self.k, self.v, decay)

    def step(self) -> tuple[Tensor, Tensor]:
        g, state, dtype = self.g, self.state, self.dtype
        query, key, value = (x[:, 0].to(dtype) for x in (self.q, self.k, self.v))
        query = query * default_scale(self.scale, self.q)
        new_state = key.unsqueeze(-1) * value.unsqueeze(-2)
        if state is not None and g is None:
            new_state.add_(state)
        elif state is not None and g is not None:
            decay = (g if g.dim() == 1 else g[:, 0]).to(dtype).exp()
            new_state.addcmul_(decay.unsqueeze(-1) if g.dim() == 4 else decay[..., None, None], state)
        if self.bonus is None:
            o = (query.unsqueeze(-2) @ new_state).squeeze(-2)
        else:
            o = (query * self.bonus.to(dtype) * key).sum(-1, keepdim=True) * value
            o = o if state is None else o + (query.unsqueeze(-2) @ state).squeeze(-2)
        return o.unsqueeze(1), new_state

    def default_chunk_size(self) -> int:
        return VECTOR_CHUNK if self.is_vector() else SCALAR_CHUNK

    def is_vector(self) -> bool:
        """Whether the chunk form is that of one decay a key channel."""
        return self.bonus is not None or (self.g is not None and self.g.dim() == 4)

    def chunk(self) -> tuple[Tensor, Tensor]:
        q, k, v, scale = self.q, self.k, self.v, default_scale(self.scale, self.q)
        bonus = None if self.bonus is None else self.bonus.to(self.dtype)
        if self.is_native():
            query, key, decay, value = (x.to(self.dtype) for x in (q * scale, k, self.decay_per_channel(), v))
            return NativeVectorDecay.apply(query, key, decay, self.keep(), value, bonus, self.start_state())
        g, chunk, keep = self.decay_per_step(), self.chunk_length(), self.keep_chunks()
        if self.is_vector():
            g = self.decay_per_channel()
            query, key, decay, value = (chunk_view(x, chunk) for x in (q, k, g, v))
            o, state = chunk_vector_decay(query, key, decay, keep, value, bonus, self.start_state(), scale)
        else:
            query, key, value, decay = (to_chunks(x, chunk, self.dtype) for x in (q, k, v, g))
            o, state = _chunk_scalar_decay(query * scale, key, value, decay, keep, self.start_state())
        return from_chunks(o, q.shape[1], v.dtype), state

    def is_native(self) -> bool:
        """Whether the chunk form is the C kernel. With one decay a head, matrix products are as fast."""
        given = (self.q, self.k, self.v, self.g, self.bonus, self.state)
        sides = self.sizes["K"], self.sizes["V"]
        return self.is_vector() and self.dtype == torch.float32 and has_kernel(KERNELS, sides, *given)

    def decay_per_channel(self) -> Tensor:
        """Log decays [B, T, H, K]."""
        g = self.decay_per_step()
        return (g if g.dim() == 4 else g.unsqueeze(-1)).expand_as(self.q)

    def covers(self) -> bool:
        g = self.g
        if not super().covers():
            return False
        if self.bonus is not None:
            return g is not None and g.dim() == 4
        return g is None or g.dim() != 1 or not g.requires_grad

    def kernel(self) -> tuple[Tensor, Tensor]:
        v, g = self.v, self.g
        arrays = {"q": self.q.to(v.dtype), "k": self.k.to(v.dtype), "v": v, "g": g}
        options: dict[str, Any] = {"scale": self.scale}
        if self.bonus is not None:
            arrays = dict(zip(("r", "k", "v", "w"), arrays.values(), strict=True))
            return self.on_fla("rwkv6.chunk_rwkv6", arrays, u=self.bonus.to(v.dtype), **options)
        if g is not None and g.dim() == 4:
            return self.on_fla("gla.chunk_gla", arrays, **options)
        if g is not None and refuses_gated_gradients() and needs_gradients(*arrays.values(), self.state):
            arrays["g"] = self.decay_per_step().unsqueeze(-1).expand_as(self.q).float().contiguous()
            return self.on_fla("gla.chunk_gla", arrays, **options)
        if g is not None and g.dim() == 1:
            arrays["g"], options["g_gamma"] = None, g.float()
        return self.on_fla("simple_gla.chunk_simple_gla", arrays, **options)

    def decay_per_step(self) -> Tensor:
        """Log decays with a time axis: [1, T, H] for constant ones, so that nothing is computed once per row."""
        if self.g is None:
            return self.q.new_zeros(1, self.q.shape[1], 1, dtype=torch.float32)
        return self.g.expand(1, self.q.shape[1], -1) if self.g.dim() == 1 else self.g


def _chunk_scalar_decay(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, keep: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One decay a step: scores are q k^T times a matrix of decays. Arrays [N, B, H, C, .], g [N, B|1, H|1, C]."""
    decay = g.exp() if keep is None else g.exp() * keep
    between, prefix, suffix, total = decay_products(decay)
    scores = (q @ k.transpose(-1, -2)) * between
    increments = (k * suffix.unsqueeze(-1)).transpose(-1, -2) @ v
    states, state = chunk_states(increments, total[..., None, None], state, 0)
    return scores @ v + (q * prefix.unsqueeze(-1)) @ states, state


linear_attention = Recurrence(LinearAttention, "linear_attention")
