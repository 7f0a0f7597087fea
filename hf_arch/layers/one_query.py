"""Attention of a single token in a decoding step on a CPU, between its projections, by one kernel.

Taken by layers of plain softmax attention alone, over a cache that grows; whatever has something put around a stage of
it goes the usual way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.compat import is_hooked
from ..ops.one_row import WIDEST_HEAD
from .attention_product import AttentionProduct
from .compat import calls_torch_sdpa
from .contract import LayerContext
from .growing_keys import Room, room_of
from .plain_linear import row_product

STAGES = frozenset(
    ("forward", "project", "placed", "split_value", "kept", "attend", "warmed", "scores", "read_out", "published")
)
"""Methods of Attention in whose place the kernel stands."""


def one_query(mixer: Any, x: Tensor, context: LayerContext) -> Tensor | None:
    """The heads [1, 1, H K] of a layer of plain attention, before its output projection; None, with nothing changed,
    where it has to go the usual way.

    Args:
        mixer: AttentionHeads, with nothing between its projections but rotation and the softmax product.
        x: [1, 1, D].
    """
    room = _room(mixer, context)
    if room is None:
        return None
    row, rotary = context.row, context.position_embeddings
    assert row is not None
    products = [row_product(layer, x, row) for layer in (mixer.q_proj, mixer.k_proj, mixer.v_proj)]
    query, key, value = products
    if query is None or key is None or value is None:
        return None
    query, key = _normed(query, mixer.q_norm, mixer.head_dim), _normed(key, mixer.k_norm, mixer.head_dim)
    past = room.held[0].shape[2]
    out = row.attend(query, key, value, rotary, *room.with_room(past + 1), past, mixer.product.scaling)
    room.hold(past + 1)
    layer = context.cache.layers[mixer.layer_idx if context.execution is None else context.execution]
    layer.keys, layer.values = room.held
    return out


def _normed(heads: Tensor, norm: nn.Module | None, width: int) -> Tensor:
    """[1, 1, H K] -> the same, each head normed."""
    return heads if norm is None else norm(heads.unflatten(-1, (-1, width))).flatten(-2).contiguous()


def _room(mixer: Any, context: LayerContext) -> Room | None:
    """Where the kernel may write the token's key and value; None where it may not take the place of the stages."""
    if context.row is None or context.cache is None or context.sites or context.values or context.attention_kwargs:
        return None
    if context.attention_mask is not None or context.position_bias is not None:
        return None
    if is_hooked(mixer.product) or type(mixer.product).forward is not AttentionProduct.forward:
        return None
    # What somebody has set on a finished layer, which the other way follows too.
    if mixer.softcap or mixer.attention_window or mixer.sinks is not None or not STAGES.isdisjoint(mixer.__dict__):
        return None
    if mixer.training or mixer.head_dim > WIDEST_HEAD or not calls_torch_sdpa(mixer.config):
        return None
    for angles in context.position_embeddings or ():
        if angles.dtype != torch.float32 or angles.shape[:2] != (1, 1) or not angles.is_contiguous():
            return None
    room = room_of(context.cache, mixer.layer_idx if context.execution is None else context.execution)
    sizes = (1, mixer.num_kv_heads, mixer.head_dim)
    if room is None or any(
        held.dtype != torch.float32 or (*held.shape[:2], held.shape[3]) != sizes for held in room.held
    ):
        return None
    return room
