"""What an operation gives on shapes alone, looked up: fake tensors like those of an earlier call given the same.

FakeTensorMode has such a table too, and takes half a millisecond for most calls. What is looked up here is as it found
it: shape, strides, dtype and device of each result, and whose storage it shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from hf_arch.evaluation.fake_tensors import (
    UNSAFE_VIEW,
    FakeTensor,
    FakeTensorMode,
    below_dispatch,
    fake_like,
    makes_results,
)

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass(frozen=True)
class _Like:
    """A tensor; `shares` is the place among the arguments' tensors of the one whose storage it has, None with one of
    its own."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    shares: int | None


class _NotKnown(Exception):
    """An argument of a kind that is not looked up."""


_known: dict[Any, tuple[type | None, list[_Like]] | None] = {}
"""By operation and arguments: the type that holds the results (None for a single one) and each of them; None where they
are not looked up."""


class KnownResults:
    """The table, for the tensors of one FakeTensorMode."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._attributes: dict[torch.device, dict[str, Any]] = {}

    def of(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What `func(*args, **kwargs)` gives within the mode."""
        if not makes_results(func):
            return func(*args, **kwargs)
        given: list[Any] = []
        parts = [func, torch.is_autocast_enabled("cpu"), torch.get_default_dtype()]
        try:
            _describe(args, parts, given, func.is_view)
            if kwargs:
                _describe(tuple(kwargs.items()), parts, given, func.is_view)
        except _NotKnown:
            return func(*args, **kwargs)
        key = tuple(parts)
        if key not in _known:
            result = func(*args, **kwargs)
            _known[key] = _remember(result, given, func)
            return result
        known = _known[key]
        if known is None:
            return func(*args, **kwargs)
        kind, likes = known
        return self._make(likes[0], given) if kind is None else kind(self._make(like, given) for like in likes)

    def _make(self, like: _Like, given: list[Any]) -> Any:
        if like.shares is None:
            with below_dispatch():
                x = torch.empty_strided(like.size, like.stride, dtype=like.dtype, device="meta")
        else:
            storage = given[like.shares].untyped_storage()
            with below_dispatch():
                x = torch.empty(0, dtype=like.dtype, device="meta")
                x.set_(storage, like.offset, like.size, like.stride)
        attributes = self._attributes.get(like.device)
        if attributes is None:
            first = FakeTensor(self.mode, x, like.device)
            self._attributes[like.device] = dict(first.__dict__)
            return first
        return fake_like(x, like.device, attributes)


def _describe(x: Any, key: list[Any], given: list[Any], view: bool) -> None:
    """Adds what of an argument decides the results to `key`, and its tensors to `given`."""
    kind = type(x)
    if kind is FakeTensor:
        if x.constant is not None or x.dtype.is_complex or x.is_neg():
            raise _NotKnown
        given.append(x)
        key += (x.shape, x.stride(), x.dtype, x.fake_device, x.storage_offset() if view else None)
    elif kind is tuple or kind is list:
        key += (kind, len(x))
        for entry in x:
            _describe(entry, key, given, view)
    elif kind in _PLAIN:
        key += (kind, x)
    else:
        raise _NotKnown


def _remember(result: Any, given: list[Any], func: Any) -> tuple[type | None, list[_Like]] | None:
    """How to make results like these; None for what is no plain tensor that has a storage of its own or, of a view,
    that of an argument."""
    kind = type(result) if type(result) in (tuple, list) else None
    storages = [id(x.untyped_storage()) for x in given]
    likes = []
    for x in [result] if kind is None else result:
        if type(x) is not FakeTensor or x.constant is not None or x.layout is not torch.strided or x.requires_grad:
            return None
        if x.dtype.is_complex or x.is_neg():
            return None
        storage, shares = x.untyped_storage(), None
        if id(storage) in storages:
            shares = storages.index(id(storage))
            if shares >= len(given) or not (func.is_view or func is UNSAFE_VIEW):
                return None
        elif storage.nbytes() != _bytes(x) or x.storage_offset() or func.is_view:
            return None
        likes.append(_Like(x.shape, x.stride(), int(x.storage_offset()), x.dtype, x.fake_device, shares))
        storages.append(id(storage))
    return kind, likes


def _bytes(x: Any) -> int:
    """Of the smallest storage that holds a tensor."""
    if math.prod(x.shape) == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return int((last + 1) * x.element_size())
