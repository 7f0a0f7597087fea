"""Shapes as text: "B T H K" names the axes of a tensor, "H | B T H" gives a choice, a digit is a fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args, get_type_hints

Shape = tuple[str, ...]

OPTION = ""  # the shape of what is no tensor


class Argument(NamedTuple):
    """A declared argument: the possible shapes of a tensor, what it is, and whether None is allowed."""

    shapes: tuple[Shape, ...]
    text: str
    optional: bool


def declared_arguments(cls: type) -> dict[str, Argument]:
    """The fields annotated with a shape (or `OPTION`) and a meaning, those of base classes first."""
    arguments = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        metadata = getattr(hint, "__metadata__", None)
        if metadata:
            optional = type(None) in get_args(get_args(hint)[0])
            arguments[name] = Argument(parse_shapes(metadata[0]), ", ".join(metadata[1:]), optional)
    return arguments


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The alternatives of "H | B T H"."""
    return tuple(tuple(alternative.split()) for alternative in text.split("|") if alternative)


def binds(axes: Shape, shape: Sequence[int], sizes: dict[str, int]) -> bool:
    """Whether a shape has these axes; sizes of new letters are noted."""
    if len(axes) != len(shape):
        return False
    return all(sizes.setdefault(axis, size) == size for axis, size in zip(axes, shape, strict=True))


def written(shapes: tuple[Shape, ...], sizes: dict[str, int] | None = None) -> str:
    """ "[H] or [B, T, H]", and the sizes that are known."""
    names = " or ".join(f"[{', '.join(axes)}]" for axes in shapes)
    sizes = sizes or {}
    known = {axis: sizes[axis] for axes in shapes for axis in axes if axis.isalpha() and axis in sizes}
    return names + (f" ({', '.join(f'{axis} = {size}' for axis, size in known.items())})" if known else "")
