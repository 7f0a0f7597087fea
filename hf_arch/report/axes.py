"""Axes of the figures: names on several lines, units that fit the values, ticks without exponents."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from hf_arch.core.formats import byte_size
from hf_arch.report.names import short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Units = tuple[tuple[float, str], ...]  # (size, name), largest first
SECONDS: Units = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
LONGEST = 56  # characters of a name in a figure
BYTES: Units = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


def name_axis(axes: Axes, names: Sequence[str]) -> None:
    """Names down the side, first at the top, wrapped where they are long."""
    axes.set_yticks(range(len(names)), wrapped_names(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def wrapped_names(names: Sequence[str]) -> list[str]:
    """Names on a few lines each; very long ones without their middle, and still distinct."""
    short = short_names(names, LONGEST)
    return [wrapped(short[name]) for name in names]


def wrapped(name: str, width: int = 20) -> str:
    """A name on a few lines, broken after -, _ or a space."""
    lines = [""]
    for part in re.findall(rf"[^-_ ]{{1,{width - 1}}}[-_ ]?|[-_ ]", name):
        if len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def rows_height(names: Sequence[str]) -> float:
    """Inches for one row a name, as high as its lines."""
    return 0.75 + sum(max(0.34, 0.15 * (name.count("\n") + 1) + 0.06) for name in wrapped_names(names))


def axis_unit(largest: float, units: Units) -> tuple[float, str]:
    """The largest unit that is at most half the largest value, and its name; (1, "") without units."""
    return next(((size, unit) for size, unit in units if largest >= 2 * size), (1.0, units[-1][1] if units else ""))


def plain_ticks(axis: Any, units: Units) -> None:
    """A few ticks; counts with a decimal prefix, values already in a unit as they are."""
    axis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
    if not units:
        axis.set_major_formatter(EngFormatter(sep=""))


def log_ticks(axis: Any, show: Callable[[float], str]) -> None:
    """A logarithmic axis with a few labelled ticks, in powers of two for bytes."""
    axis.axes.set_xscale("log", base=2 if show is byte_size else 10)
    low, high = axis.axes.get_xlim()
    if show is byte_size:
        axis.set_major_locator(LogLocator(base=2, numticks=5))
    else:
        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0) if high / low > 8 else (1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _position: show(value)))
    axis.set_minor_locator(NullLocator())
