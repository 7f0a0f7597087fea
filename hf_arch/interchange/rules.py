"""Tensors of theirs that are tensors of ours: the keys on both sides, and the change of layout each way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """Some tensors of theirs are some tensors of ours: keys on both sides, and the change of layout each way."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: Callable[[list[Tensor]], list[Tensor]] = list
    to_theirs: Callable[[list[Tensor]], list[Tensor]] = list
    shared: bool = False
    """Whether theirs are names of one tensor, of which a file may hold the first or any other alone."""


def same(ours: str, theirs: str) -> Rule:
    """One tensor under two names."""
    return Rule((ours,), (theirs,))


def shared(ours: str, *theirs: str) -> Rule:
    """One tensor that they have under several names."""
    return Rule((ours,), theirs, lambda equal: equal[:1], lambda one: one * len(theirs), shared=True)


def parts(ours: str, theirs: str, names: Iterable[str] = ("weight",)) -> list[Rule]:
    """`same` for each of a module's parameters."""
    return [same(f"{ours}.{name}", f"{theirs}.{name}") for name in names]


def transposed(ours: str, theirs: str) -> Rule:
    """A matrix stored the other way round (GPT-2's Conv1D)."""

    def flip(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.mT.contiguous() for tensor in tensors]

    return Rule((ours,), (theirs,), flip, flip)


def fused(ours: Iterable[str], theirs: str, sizes: Iterable[int], *, flip: bool = False) -> Rule:
    """Several of our tensors stacked along the first axis in one of theirs (the last axis where it is stored
    flipped)."""
    lengths, axis = list(sizes), -1 if flip else 0

    def split(tensors: list[Tensor]) -> list[Tensor]:
        pieces = tensors[0].split(lengths, dim=axis)
        return [(piece.mT if flip else piece).contiguous() for piece in pieces]

    def join(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat([tensor.mT if flip else tensor for tensor in tensors], dim=axis)]

    return Rule(tuple(ours), (theirs,), split, join)


def in_turn(ours: tuple[str, ...], theirs: tuple[str, ...], heads: int) -> Rule:
    """Several of our projections in one of theirs, whose rows take them head by head: [H, number of them, K, D]."""

    def split(tensors: list[Tensor]) -> list[Tensor]:
        return [part.flatten(0, 1).contiguous() for part in tensors[0].unflatten(0, (heads, len(ours), -1)).unbind(1)]

    def join(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack([tensor.unflatten(0, (heads, -1)) for tensor in tensors], 1).flatten(0, 2)]

    return Rule(ours, theirs, split, join)


def half_split(ours: str, theirs: str, heads: int) -> Rule:
    """Rows of `heads` heads whose rotation turns neighbours there and halves here: a matrix, a bias or a norm."""

    def to_ours(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous() for tensor in tensors]

    def to_theirs(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous() for tensor in tensors]

    return Rule((ours,), (theirs,), to_ours, to_theirs)
