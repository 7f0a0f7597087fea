"""What `hf-arch bench` shows of its document: a table, and a figure of speed and memory by length of context."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from hf_arch.core.errors import ConfigError
from hf_arch.core.formats import FILE_WIDTH, byte_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPEEDS = ("train", "prefill", "decode")
FORMATS = (".pdf", ".png", ".svg")


def label(row: dict[str, Any]) -> str:
    """Name of a row's model, with the implementation where it is not ours."""
    return row["name"] if row["implementation"] == "hf_arch" else f"{row['name']} ({row['implementation']})"


def print_bench(document: dict[str, Any]) -> None:
    """A line on stdout for each model and length; in parentheses the ratio to its baseline, after a comma the share of
    what the machine could give, where that was measured."""
    settings, provenance = document["settings"], document["provenance"]
    title = (
        f"{provenance['device']}, {provenance['threads']} threads, {settings['dtype']}, batch {settings['batch_size']}"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for column in ("tokens", "parameters", "train tok/s", "prefill tok/s", "decode tok/s", "peak memory", "cache"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in document["results"]:
        ratio = row.get("ratio", {})
        shares = row.get("roofline_share", {})
        cells = [
            _with_ratio(f"{row[f'{phase}_tokens_per_second']:,.0f}", ratio.get(phase), shares.get(phase))
            for phase in SPEEDS
        ]
        cells += [_with_ratio(byte_size(row[f"{key}_bytes"]), ratio.get(key)) for key in ("peak_memory", "cache")]
        table.add_row(label(row), f"{row['seq_len']:,}", f"{row['params_total']:,}", *cells)
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    console.print(table)
    if (limits := document.get("roofline")) is not None:
        rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in limits["product_flops"].items())
        console.print(f"this machine: products at {rates}; copies at {limits['copy_bytes'] / 1e9:,.1f} GB/s")


def _with_ratio(text: str, ratio: float | None, share: float | None = None) -> str:
    notes = [f"{ratio:.2f}x"] if ratio is not None else []
    notes += [f"{share:.1%}"] if share is not None else []
    return f"{text} ({', '.join(notes)})" if notes else text


def check_plot_path(path: str) -> None:
    """Raises `ConfigError` where matplotlib could not write a figure of that name: better before the measurement."""
    if Path(path).suffix not in FORMATS:
        raise ConfigError(f"--plot: {path}: not a picture's name; allowed endings: {', '.join(FORMATS)}")


def plot_bench(document: dict[str, Any], path: str) -> None:
    """Writes a figure: speed of training, prefill and decode, and bytes of the cache, against length of context."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    from hf_arch.report.plots import RC, Series

    rows = document["results"]
    names = list(dict.fromkeys(label(row) for row in rows))
    panels: list[tuple[str, str, Callable[[float], str]]] = [
        *((f"{phase}_tokens_per_second", f"{phase}, tokens/s", lambda value: f"{value:,.0f}") for phase in SPEEDS),
        ("cache_bytes", "cache", lambda value: byte_size(int(value))),
    ]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(9.0, 6.0))
        for axes, (key, title, shape) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            for index, name in enumerate(names):
                series = Series(index, name)
                points = [(row["seq_len"], row[key]) for row in rows if label(row) == name and row[key]]
                if points:
                    _draw(axes, points, series)
            lengths = sorted({row["seq_len"] for row in rows})
            axes.set(title=title, xlabel="tokens of context", xscale="log", yscale="log", xticks=lengths)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.xaxis.set_minor_locator(NullLocator())
            formatter = FuncFormatter(lambda value, _, shape=shape: shape(value))
            axes.yaxis.set_major_formatter(formatter)
            axes.yaxis.set_major_locator(LogLocator(2) if key == "cache_bytes" else LogLocator(10, subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
        figure.savefig(path)


def _draw(axes: Axes, points: list[tuple[int, float]], series: Any) -> None:
    lengths, values = zip(*sorted(points), strict=True)
    axes.plot(lengths, values, color=series.color, marker=series.marker, linestyle=series.dash, label=series.name)
