"""Linformer made causal (after Wang et al. 2020, arXiv 2006.04768).

    o_t = softmax-weighted sum over  (k_j, v_j), j <= t in the block of t,  and  (E K_b, F V_b), b any finished block

Linformer projects keys and values along the sequence to a few slots, so that its queries see the future. Here each
finished block of C tokens is projected to r slots by learned E, F [r, C]; inside its own block a query attends exactly.
A token costs C + r T / C pairs instead of T, and the cache holds r slots for C tokens, and the unfinished block.

What projections have in common, as in the paper: "none", "heads" (E and F for all heads), "kv" (one matrix for keys
and values of all heads), "layers" (the same one in every layer that says so).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import MIXERS, POSITIONS
from ...ops.blocks import BlockPlan, from_blocks, plan_blocks, to_blocks
from ...ops.precision import state_dtype
from ...ops.rotary import apply_rotary
from ..attention_product import cache_element_bytes
from ..contract import LayerContext
from ..layout import SequenceLayout
from ..rope_parameters import RotarySpec
from ..state import LayerState
from .base import MixerCost, RecurrentMixer, SharedParameters, divide
from .linear_heads import kv_heads

TOGETHER = 1024
"""Tokens whose blocks are looked at together: their scores stay small, and no slot is scored that all of them hide."""


@options
class LinformerOptions(Options):
    """block_size is C, num_slots r; num_heads, num_kv_heads, bias: None takes the config's."""

    num_heads: int | None = None
    num_kv_heads: int | None = None
    block_size: int = 128
    num_slots: int = 16
    sharing: Literal["none", "heads", "kv", "layers"] = "none"
    bias: bool | None = None


@dataclass(frozen=True)
class LayerProjection:
    """The one matrix of all layers with `sharing` "layers" and equal sizes."""

    num_slots: int
    block_size: int
    num_layers: int

    def build(self) -> SharedProjection:
        return SharedProjection(self)


class SharedProjection(SharedParameters):
    """Holds E = F, [1, r, C]."""

    def __init__(self, spec: LayerProjection):
        super().__init__()
        self.num_layers = spec.num_layers
        self.weight = nn.Parameter(torch.empty(1, spec.num_slots, spec.block_size))

    def forward(self) -> list[Tensor]:
        return [self.weight] * self.num_layers

    def init_weights(self) -> None:
        init_projection(self.weight)


def init_projection(weight: Tensor) -> None:
    """Slots as large as the keys and values they are made of."""
    init.normal_(weight, mean=0.0, std=weight.shape[-1] ** -0.5)


class Blocks(NamedTuple):
    """Queries [B, H, N, Q, K], keys and values [B, Hkv, N, C, K] of the same blocks, and slots [B, Hkv, M, r, K]."""

    q: Tensor
    keys: Tensor
    values: Tensor
    slot_keys: Tensor
    slot_values: Tensor


class Past(NamedTuple):
    """What a layer keeps of earlier tokens: the slots of S finished blocks [B, H, S, r, K], and the unfinished block
    [B, H, n, K].

    Where rows differ, `finished` and `running` [B] count the blocks and tokens that are a row's own, and n is C; else
    they are None and all rows have S and n.
    """

    slot_keys: Tensor
    slot_values: Tensor
    keys: Tensor
    values: Tensor
    finished: Tensor | None = None
    running: Tensor | None = None


@MIXERS.register("linformer")
class CausalLinformer(RecurrentMixer):
    """Exact attention inside a block, attention to r learned summaries of every finished block."""

    Options = LinformerOptions
    label: ClassVar[str] = "Linformer"
    config_features: ClassVar[tuple[str, ...]] = (
        *("attention_bias", "attn_logit_softcapping", "attention_dropout"),
        *("position", "rope_parameters"),
    )

    def __init__(self, config: Any, options: LinformerOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        self.num_heads, self.num_kv_heads = kv_heads(config, options)
        self.head_dim = self.head_size(config, options)
        bias = config.attention_bias if options.bias is None else options.bias
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=bias)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=bias)
        shape = (self.num_kv_heads if options.sharing == "none" else 1, options.num_slots, options.block_size)
        own, separate = options.sharing != "layers", options.sharing in ("none", "heads")
        self.key_slots = nn.Parameter(torch.empty(shape)) if own else None
        self.value_slots = nn.Parameter(torch.empty(shape)) if separate else None

    @classmethod
    def head_size(cls, config: Any, options: LinformerOptions) -> int:
        if options.num_heads is None and config.head_dim is not None:
            return config.head_dim
        heads = options.num_heads or config.num_attention_heads
        return divide(config.hidden_size, heads, "num_attention_heads", "hidden_size")

    @classmethod
    def validate(cls, config: Any, options: LinformerOptions) -> None:
        kv_heads(config, options)
        size, position = cls.head_size(config, options), POSITIONS.get(config.position, "position")
        for name in ("block_size", "num_slots"):
            if getattr(options, name) < 1:
                raise ConfigError(
                    f"mixer linformer: {name} {getattr(options, name)} is not allowed; use an integer >= 1"
                )
        if position.rotary and size % 2:
            raise ConfigError(f"head_dim: {size} is odd, RoPE rotates pairs; nearest valid: {size - 1} or {size + 1}")
        if position.bias:
            raise ConfigError("position: 'alibi' has no distance to a summary of linformer; use 'rope' or 'learned'")
        if config.qk_norm:
            raise ConfigError("qk_norm: True is not allowed with mixer linformer; use False")

    @classmethod
    def rotary(cls, config: Any, options: LinformerOptions) -> RotarySpec | None:
        if not POSITIONS.get(config.position, "position").rotary:
            return None
        size = cls.head_size(config, options)
        return RotarySpec(size, dict(config.rope_parameters), config.max_position_embeddings)

    @classmethod
    def shared(cls, config: Any, options: LinformerOptions) -> LayerProjection | None:
        if options.sharing != "layers":
            return None
        return LayerProjection(options.num_slots, options.block_size, config.num_hidden_layers)

    def mix(self, x: Tensor, layout: SequenceLayout, state: LayerState, context: LayerContext) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        rotary = context.position_embeddings
        if rotary is not None:
            q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        to_key = self.key_slots if context.shared is None else context.shared
        assert to_key is not None
        to_value = to_key if self.value_slots is None else self.value_slots
        past = self.read(state, k, to_key)
        if layout.mask is not None or layout.segment_ids is not None or past.running is not None:
            out, new = self.ragged(q, k, v, past, layout, to_key, to_value, keep=bool(state))
        else:
            out, new = self.even(q, k, v, past, to_key, to_value)
        for index, kept in enumerate(new):
            state.write_recurrent(kept, index)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def read(self, state: LayerState, k: Tensor, to_key: Tensor) -> Past:
        """The cached past, or an empty one."""
        slots = state.recurrent(0)
        if slots is None:
            slots = k.new_zeros(*k.shape[:2], 0, to_key.shape[1], k.shape[3])
            return Past(slots, slots, k[:, :, :0], k[:, :, :0])
        kept = (state.recurrent(index) for index in range(len(Past._fields)))
        return Past._make(x.to(k.dtype) if x is not None and x.is_floating_point() else x for x in kept)

    def even(
        self, q: Tensor, k: Tensor, v: Tensor, past: Past, to_key: Tensor, to_value: Tensor
    ) -> tuple[Tensor, Past | tuple[()]]:
        """All rows the same: blocks are slices. q [B, H, T, K] -> [B, H, T, K], and what to keep."""
        size, waiting, length, count = self.options.block_size, past.keys.shape[2], q.shape[2], past.slot_keys.shape[2]
        keys, values = torch.cat((past.keys, k), 2), torch.cat((past.values, v), 2)
        full = keys.shape[2] // size
        width = size if full else keys.shape[2]  # a block that is not full by now has no slots and needs no padding
        missing = -keys.shape[2] % width
        slot_keys, slot_values = past.slot_keys, past.slot_values
        if full:
            done = [x[:, :, : full * size].unflatten(2, (full, size)) for x in (keys, values)]
            slot_keys = torch.cat((slot_keys, summarise(done[0], to_key)), 2)
            slot_values = torch.cat((slot_values, summarise(done[1], to_value)), 2)
        if length == 1:
            own = (keys.unsqueeze(2), values.unsqueeze(2))
            out = self.attend(Blocks(q.unsqueeze(2), *own, past.slot_keys, past.slot_values)).squeeze(2)
        else:
            aligned = F.pad(q, (0, 0, waiting, missing)).unflatten(2, (-1, width))
            own_keys, own_values = (F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, width)) for x in (keys, values))
            blocks = torch.arange(aligned.shape[2], device=q.device)
            visible = torch.arange(slot_keys.shape[2], device=q.device) < count + blocks[:, None]
            causal = torch.ones(width, width, dtype=torch.bool, device=q.device).tril()
            whole = Blocks(aligned, own_keys, own_values, slot_keys, slot_values)
            out = self.attend_in_groups(whole, causal, visible[None], count)
            out = out.flatten(2, 3)[:, :, waiting : waiting + length]
        rest = slice(full * size, None)
        return out, Past(slot_keys, slot_values, keys[:, :, rest], values[:, :, rest])

    def ragged(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past: Past,
        layout: SequenceLayout,
        to_key: Tensor,
        to_value: Tensor,
        *,
        keep: bool,
    ) -> tuple[Tensor, Past | tuple[()]]:
        """Rows with padding, documents or pasts of their own: blocks are gathered. As `even`."""
        size, count, device = self.options.block_size, past.slot_keys.shape[2], q.device
        batch, length = q.shape[0], q.shape[2]
        finished, running = past.finished, past.running
        if finished is None or running is None:
            finished = torch.full((batch,), count, device=device)
            running = torch.full((batch,), past.keys.shape[2], device=device)
        plan = plan_blocks(layout.mask, layout.segment_ids, running, (batch, length), size)
        own_keys, own_values = to_blocks(k, plan, size, past.keys), to_blocks(v, plan, size, past.values)
        slot_keys = torch.cat((past.slot_keys, summarise(own_keys, to_key)), 2)
        slot_values = torch.cat((past.slot_values, summarise(own_values, to_value)), 2)
        visible = self.visible(plan, finished, count)
        if length == 1:
            filled = torch.arange(size, device=device) <= (plan.place % size)
            own = (own_keys[:, :, :1], own_values[:, :, :1])
            one = Blocks(q.unsqueeze(2), *own, slot_keys, slot_values)
            out = self.attend(one, filled[:, None, None, None], visible[:, :1]).squeeze(2)
        else:
            causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
            whole = Blocks(to_blocks(q, plan, size), own_keys, own_values, slot_keys, slot_values)
            out = from_blocks(self.attend_in_groups(whole, causal, visible, count), plan)
        if not keep:
            return out, ()
        total = finished + plan.finished
        index = torch.arange(int(total.max()), device=device).expand(batch, -1)
        index = torch.where(index < finished[:, None], index, index + (count + plan.first_block - finished)[:, None])
        slots = [take_blocks(x, index.clamp(max=x.shape[2] - 1)) for x in (slot_keys, slot_values)]
        last = (plan.first_block + plan.finished).clamp(max=plan.num_blocks - 1)[:, None]
        rest = [take_blocks(x, last).squeeze(2) for x in (own_keys, own_values)]
        return out, Past._make((*slots, *rest, total, plan.running))

    def visible(self, plan: BlockPlan, finished: Tensor, count: int) -> Tensor:
        """Which slots (of `count` past blocks, then of this call's) a block's queries see, bool [B, N, count + N]."""
        blocks = torch.arange(plan.num_blocks, device=finished.device)
        earlier = (blocks < blocks[:, None]).expand(len(finished), -1, -1)
        if plan.document is not None:
            earlier = earlier & (plan.document[:, None, :] == plan.document[:, :, None])
        past = torch.arange(count, device=finished.device) < finished[:, None]
        return torch.cat((past[:, None].expand(-1, plan.num_blocks, -1), earlier), -1)

    def attend_in_groups(self, blocks: Blocks, own_mask: Tensor, visible: Tensor, count: int) -> Tensor:
        """`attend` for whole blocks, `TOGETHER` tokens at a time: none of them sees the slots of later ones.

        Args:
            count: of the M blocks with slots, those before this call; block n of the call sees at most count + n.
        """
        number, several = blocks.q.shape[2], max(1, TOGETHER // self.options.block_size)
        if number <= several or torch.compiler.is_compiling():
            return self.attend(blocks, own_mask, visible)
        parts = []
        for start in range(0, number, several):
            some = slice(start, start + several)
            seen = slice(count + min(start + several, number) - 1)
            own = (x[:, :, some] for x in blocks[:3])
            slots = (x[:, :, seen] for x in blocks[3:])
            parts.append(self.attend(Blocks(*own, *slots), own_mask, visible[:, some, seen]))
        return torch.cat(parts, 2)

    def attend(self, blocks: Blocks, own_mask: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Queries of each block over its own keys and over slots.

        Args:
            own_mask: bool, broadcast to [B, H, N, Q, C], or None for all.
            visible: bool [B or 1, N, M], or None for all.

        Returns:
            [B, H, N, Q, K].
        """
        q, keys, values, slot_keys, slot_values = blocks
        groups, count = self.num_heads // self.num_kv_heads, keys.shape[3]
        slot_keys, slot_values = slot_keys.flatten(2, 3), slot_values.flatten(2, 3)
        if groups > 1:
            keys, values, slot_keys, slot_values = (
                x.repeat_interleave(groups, 1) for x in (keys, values, slot_keys, slot_values)
            )
        q = q * self.head_dim**-0.5
        own = self.cap(q @ keys.mT)
        slots = self.cap((q.flatten(2, 3) @ slot_keys.mT).unflatten(2, q.shape[2:4]))
        if own_mask is not None:
            own = own.masked_fill(~own_mask, float("-inf"))
        if visible is not None:
            hidden = ~visible.repeat_interleave(self.options.num_slots, -1)
            slots = slots.masked_fill(hidden[:, None, :, None], float("-inf"))
        scores = torch.cat((own, slots), -1)
        weights = torch.softmax(scores, -1, dtype=state_dtype(q)).to(q.dtype)
        weights = F.dropout(weights, self.config.attention_dropout, self.training)
        over_slots = weights[..., count:].flatten(2, 3) @ slot_values
        return weights[..., :count] @ values + over_slots.unflatten(2, q.shape[2:4])

    def cap(self, scores: Tensor) -> Tensor:
        """Scores with the config's soft cap."""
        softcap = self.config.attn_logit_softcapping
        return scores if softcap is None else torch.tanh(scores / softcap) * softcap

    def cost(self, seq_len: int) -> MixerCost:
        """4 H K FLOPs a pair of a token with a key of its block, or with a slot of a finished one, and 4 Hkv K r to
        project a token into r slots. 2 Hkv K numbers of cache a slot, and a token of the unfinished block.
        """
        size, slots = self.options.block_size, self.options.num_slots
        full, rest = divmod(seq_len, size)
        pair, project = 4 * self.num_heads * self.head_dim, 4 * self.num_kv_heads * self.head_dim * slots
        kept = 2 * self.num_kv_heads * self.head_dim * (full * slots + rest)
        return MixerCost(
            mixing_flops=seq_len * (pair * (min(size, seq_len) + full * slots) + project),
            decode_flops=pair * (full * slots + rest + 1) + project,
            state_bytes=kept * cache_element_bytes(self.config),
        )

    def init_weights(self) -> None:
        for weight in (self.key_slots, self.value_slots):
            if weight is not None:
                init_projection(weight)


def summarise(blocks: Tensor, projection: Tensor) -> Tensor:
    """[B, H, N, C, K] and [H or 1, r, C] -> the slots [B, H, N, r, K]."""
    return projection.to(blocks.dtype).unsqueeze(1) @ blocks


def take_blocks(x: Tensor, index: Tensor) -> Tensor:
    """Blocks `index` [B, S] of x [B, H, N, ., K] -> [B, H, S, ., K]."""
    index = index[:, None, :, None, None].expand(-1, x.shape[1], -1, *x.shape[3:])
    return x.gather(2, index)
