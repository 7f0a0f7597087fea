"""Room for keys and values to come, so that a decoding step does not copy all earlier ones.

transformers' `DynamicLayer` joins the cached tensors and the new ones, which copies the cache at every step. Here a
layer that is stepped through gets tensors with room behind what they hold, and what it holds is a view of their
beginning. Room is used once: whatever else has changed what the layer holds (cropped, reordered or copied caches)
makes it start anew, so that no tensor that anybody has kept ever changes.

Legend: B batch, H key heads, S tokens held, T tokens of this call, K key or value dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from ..ops.compat import watched

_ROOM = "hfa_room"
LEAST_ROOM = 64
SHARE = 8
"""A new tensor has room for an eighth more, so that a step copies about eight tokens on average."""


@dataclass
class Room:
    """held: the tensors [B, H, S, K] that a layer held after its last call. buffers: what they are the beginning of,
    None until the layer is seen to grow."""

    held: tuple[Tensor, Tensor]
    buffers: tuple[Tensor, Tensor] | None = None

    def is_of(self, layer: Any) -> bool:
        """Whether the layer holds what it was left with."""
        return layer.keys is self.held[0] and layer.values is self.held[1]

    def fits(self, new: tuple[Tensor, Tensor]) -> bool:
        """Whether `new` may be written behind what is held; what does not fit is an error of the join."""
        return all(
            held.dim() == tokens.dim() == 4
            and held.dtype == tokens.dtype
            and held.shape[:2] == tokens.shape[:2]
            and held.shape[3] == tokens.shape[3]
            for held, tokens in zip(self.held, new, strict=True)
        )

    def append(self, new: tuple[Tensor, Tensor]) -> None:
        past, total = self.held[0].shape[2], self.held[0].shape[2] + new[0].shape[2]
        for buffer, tokens in zip(self.with_room(total), new, strict=True):
            buffer[:, :, past:total].copy_(tokens)
        self.hold(total)

    def with_room(self, total: int) -> tuple[Tensor, Tensor]:
        """Buffers of what is held, with room for `total` tokens; `hold` follows when they are written."""
        buffers = self.buffers
        if buffers is None or total > buffers[0].shape[2] or not _writable(buffers[0]):
            room = total + max(LEAST_ROOM, total // SHARE)
            buffers = self.buffers = self._larger(self.held[0], room), self._larger(self.held[1], room)
        return buffers

    def hold(self, total: int) -> None:
        """The first `total` tokens of the buffers are held from now on."""
        assert self.buffers is not None
        keys, values = self.buffers
        self.held = _first(keys, total), _first(values, total)

    @staticmethod
    def _larger(held: Tensor, slots: int) -> Tensor:
        buffer = held.new_empty(*held.shape[:2], slots, held.shape[3])
        buffer[:, :, : held.shape[2]].copy_(held)
        return buffer


def _first(buffer: Tensor, total: int) -> Tensor:
    """`buffer[:, :, :total]`, in one operation."""
    rows, heads, _, width = buffer.shape
    return buffer.as_strided((rows, heads, total, width), buffer.stride())


def append_keys(cache: Any, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """`cache.update(key, value, index)`: keys and values [B, H, S + T, K] after those of this call, [B, H, T, K].

    Args:
        cache: transformers' cache of the whole model. index: of the layer in it.

    Raises:
        ValueError: the layer holds keys or values of other sizes.
    """
    layer: Any = cache.layers[index] if index < len(cache.layers) else None
    if type(layer) is not DynamicLayer or not _may_grow(cache, key):
        _check_sizes(layer, index, (key, value))
        return cache.update(key, value, index)
    room: Room | None = layer.__dict__.get(_ROOM)
    if room is None or not room.is_of(layer) or not room.fits((key, value)):
        _check_sizes(layer, index, (key, value))
        held = layer.update(key, value)
        layer.__dict__[_ROOM] = Room(held)
        return held
    room.append((key, value))
    layer.keys, layer.values = room.held
    return room.held


def room_of(cache: Any, index: int) -> Room | None:
    """The room of a layer that is stepped through by `append_keys`, where the next step may be written by who asks."""
    layer: Any = cache.layers[index] if index < len(cache.layers) else None
    if type(layer) is not DynamicLayer or type(cache) is not DynamicCache or cache.offloading:
        return None
    room: Room | None = layer.__dict__.get(_ROOM)
    return room if room is not None and room.is_of(layer) else None


def _check_sizes(layer: Any, index: int, new: tuple[Tensor, Tensor]) -> None:
    for name, tokens in zip(("keys", "values"), new, strict=True):
        held = getattr(layer, name, None)
        if not isinstance(held, Tensor) or held.dim() != 4:
            continue  # empty
        found, own = (held.shape[1], held.shape[3]), (tokens.shape[1], tokens.shape[3])
        if found != own:
            raise ValueError(
                f"past_key_values: {name} of layer {index} have {found[0]} heads of {found[1]}, but the model's "
                f"{own[0]} of {own[1]}; use a cache that this model fills. Prefix tuning needs num_key_value_heads of "
                "hidden_size / num_attention_heads in every layer, which latent attention does not have"
            )


def _may_grow(cache: Any, key: Tensor) -> bool:
    """Whether nothing but the numbers counts: no graph is recorded, nothing is offloaded or transformed. On a CPU
    alone, where it was measured."""
    plain = type(cache) is DynamicCache and not cache.offloading and key.device.type == "cpu"
    return plain and not torch.is_grad_enabled() and not watched()


def _writable(buffer: Tensor) -> bool:
    return torch.is_inference_mode_enabled() or not buffer.is_inference()
