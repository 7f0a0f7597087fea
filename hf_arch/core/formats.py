"""How numbers are written wherever a person reads them: counts, bytes, times, means with an interval."""

from __future__ import annotations

import math

MISSING = "–"
FILE_WIDTH = 160
"""Columns of a table that goes to a file or a pipe, not to a terminal."""
NOTHING = "nothing was started or written"
"""How every dry run ends."""


def quantity(value: float | None) -> str:
    """Three significant digits with a decimal prefix: 1.23M, 456k, 7.89G."""
    if value is None:
        return MISSING
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{_three_digits(value / size)}{prefix}"
    return _three_digits(value)


def factor(value: float) -> str:
    """How many times: three significant digits at most, with commas: 1.12, 2, 6,870."""
    return f"{float(f'{value:.3g}'):,.12g}"


def byte_size(value: float | None) -> str:
    """Three significant digits with a binary prefix: 512 KiB, 1.21 GiB."""
    if value is None:
        return MISSING
    for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= 0.9995 * size:
            return f"{_three_digits(value / size)} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """48 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def with_half_width(mean: float | None, half_width: float | None, decimals: int = 3) -> str:
    """`1.523 ± 0.012`, `802,500,000 ± 2,054,260`; the mean alone where there is no interval, a dash without a value."""
    if mean is None:
        return MISSING
    if abs(mean) >= 1000:  # bytes, tokens a second: digits behind the point say nothing
        decimals = 0
    if half_width is None:
        return f"{mean:,.{decimals}f}"
    if half_width > 0:  # a half-width always shows one digit that is not zero
        decimals = min(max(decimals, -math.floor(math.log10(half_width))), 6)
    return f"{mean:,.{decimals}f} ± {half_width:,.{decimals}f}"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")  # before counting digits: 0.9996 is 1.00
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}" if decimals < 6 else f"{value:.2e}"
