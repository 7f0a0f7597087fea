"""The columns of a comparison and how each number is written: one list for the terminal and for the HTML page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_arch.analysis.stats import Interval

if TYPE_CHECKING:
    from hf_arch.analysis.comparison import Comparison, Group

MISSING = "–"


@dataclass(frozen=True)
class Column:
    """`cell` writes a group's value. `key` is its number in results.json; `help` says what it is, with the unit."""

    key: str
    title: str
    help: str
    cell: Callable[[Comparison, Group], str]


def interval_text(interval: Interval | None, decimals: int = 3) -> str:
    """`1.523 ± 0.012`; the mean alone where there is no interval, a dash where there is no value."""
    if interval is None:
        return MISSING
    half = interval.half_width
    if half is None:
        return f"{interval.mean:.{decimals}f}"
    if half > 0:  # a half-width always shows one digit that is not zero
        decimals = min(max(decimals, -math.floor(math.log10(half))), 6)
    return f"{interval.mean:.{decimals}f} ± {half:.{decimals}f}"


def quantity(value: float | None) -> str:
    """Three significant digits with a decimal prefix: 1.23M, 456k, 7.89G."""
    if value is None:
        return MISSING
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{_three_digits(value / size)}{prefix}"
    return _three_digits(value)


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


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")  # before counting digits: 0.9996 is 1.00
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}" if decimals < 6 else f"{value:.2e}"


def seeds_text(group: Group) -> str:
    """How many seeds stand behind a row, and how many runs failed."""
    text = f"{len(group.counted)}"
    return f"{text} ({group.failed} failed)" if group.failed else text


COLUMNS: tuple[Column, ...] = (
    Column("params_total", "params", "parameters, embeddings included", lambda _c, g: quantity(g.mean("params_total"))),
    Column(
        "accuracy",
        "accuracy",
        "share of right answers of a probe: mean over seeds ± half a 95 % t interval",
        lambda _c, g: interval_text(g.interval("accuracy")),
    ),
    Column(
        "final_val_loss",
        "val loss",
        "validation loss in nats per token: mean over seeds ± half a 95 % t interval",
        lambda _c, g: interval_text(g.interval("final_val_loss")),
    ),
    Column(
        "versus_baseline",
        "vs baseline",
        "paired difference by seed to the baseline, with its 95 % interval; Holm-corrected over all pairs",
        lambda c, g: c.versus_baseline(g.name) or MISSING,
    ),
    Column(
        "final_val_perplexity",
        "ppl",
        "validation perplexity",
        lambda _c, g: interval_text(g.interval("final_val_perplexity"), 2),
    ),
    Column(
        "bits_per_byte",
        "bits/byte",
        "validation bits per byte",
        lambda _c, g: interval_text(g.interval("bits_per_byte")),
    ),
    Column(
        "train_tokens_per_second",
        "train tok/s",
        "tokens a second in training",
        lambda _c, g: quantity(g.mean("train_tokens_per_second")),
    ),
    Column(
        "decode_tokens_per_second",
        "decode tok/s",
        "tokens a second in generation",
        lambda _c, g: quantity(g.mean("decode_tokens_per_second")),
    ),
    Column(
        "peak_memory_bytes", "memory", "peak memory in training", lambda _c, g: byte_size(g.mean("peak_memory_bytes"))
    ),
    Column(
        "flops_per_token",
        "FLOPs/token",
        "training FLOPs for one token",
        lambda _c, g: quantity(g.mean("flops_per_token")),
    ),
    Column(
        "state_bytes",
        "state",
        "bytes of cache or state per sequence while decoding",
        lambda _c, g: byte_size(g.mean("state_bytes")),
    ),
    Column("seeds", "seeds", "completed seeds behind the row", lambda _c, g: seeds_text(g)),
    Column(
        "learning_rate",
        "lr",
        "learning rate of the row: the best of those tried",
        lambda _c, g: MISSING if g.reference.learning_rate is None else f"{g.reference.learning_rate:.3g}",
    ),
)
