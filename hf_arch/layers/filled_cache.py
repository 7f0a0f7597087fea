"""What a filled cache holds, in tensors and bytes: the state that a cost declares."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors that a filled cache holds, each once."""
    return sum(tensor.numel() * tensor.element_size() for tensor, _ in cached_tensors(cache))


def cached_tensors(cache: Any) -> list[tuple[Tensor, bool]]:
    """Every tensor that a filled cache holds, each once, and whether it is a recurrent state."""
    held: dict[int, tuple[Tensor, bool]] = {}
    for layer in cache.layers:
        for name, value in vars(layer).items():
            for tensor in value.values() if isinstance(value, dict) else [value]:
                if isinstance(tensor, Tensor) and tensor.dim() > 1:
                    held[id(tensor)] = (tensor, "recurrent" in name)
    return list(held.values())
