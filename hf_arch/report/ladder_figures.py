"""Figures of a ladder: losses against compute, isoFLOP minima, the extrapolation and its test, the multiplier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import EngFormatter

from hf_arch.analysis.scaling import Refused
from hf_arch.core.formats import quantity
from hf_arch.report.axes import log_ticks
from hf_arch.report.plots import INK, Figure, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_arch.analysis.comparison import Comparison
    from hf_arch.analysis.held_out import HeldOut
    from hf_arch.analysis.ladder import Rungs
    from hf_arch.analysis.ladder_compute import Multiplier


def ladder_figures(comparison: Comparison) -> list[Figure]:
    """All that the ladder's numbers allow; one look for each run of the set."""
    ladder = comparison.ladder
    assert ladder is not None
    looks = [(Series(index, entry.base), entry) for index, entry in enumerate(ladder.rungs)]
    found = [_losses(comparison, looks)]
    for series, entry in looks:
        if not isinstance(entry.frontier, Refused):
            found.append(_minima(comparison, series, entry))
        if not isinstance(entry.held_out, Refused):
            found.append(_held_out(comparison, series, entry.base, entry.held_out))
    shown = [entry for entry in ladder.multipliers if not entry.reason]
    return [*found, *(_multiplier(entry, index) for index, entry in enumerate(shown, start=1))]


def _losses(comparison: Comparison, looks: list[tuple[Series, Rungs]]) -> Figure:
    def draw(axes: Axes) -> None:
        for series, entry in looks:
            points, means = entry.points, entry.points.means
            for size in np.unique(points.parameters):
                of = points.parameters == size
                axes.plot(
                    entry.flops[of], means[of], color=series.color, linestyle=series.dash, marker=series.marker,
                    label=series.name if size == points.parameters.min() else None,
                )  # fmt: skip
            if not isinstance(entry.frontier, Refused):
                compute = np.geomspace(entry.flops.min(), 4 * entry.flops.max(), 60)
                axes.plot(compute, entry.frontier.losses(compute), color=series.color, linewidth=1.0, alpha=0.6)
        axes.set(xlabel="training FLOPs", ylabel=comparison.metric_name)
        log_ticks(axes.xaxis, EngFormatter(sep=""))
        axes.legend(frameon=False, fontsize=8)

    alt = "; ".join(f"{series.name}: {entry.law.words}" for series, entry in looks)
    note = "A line for each size, over its budgets, all decayed; thin: the lowest loss of the best law."
    return Figure("ladder-losses", "Loss against compute", note, f"{alt}.", draw, legend=False)


def _minima(comparison: Comparison, series: Series, entry: Rungs) -> Figure:
    def draw(axes: Axes) -> None:
        assert not isinstance(entry.frontier, Refused)
        for minimum in entry.minima:
            sizes, losses = entry.frontier.at(minimum.flops)
            axes.plot(sizes, losses, color=series.color, linewidth=1.2)
            axes.plot([minimum.parameters], [minimum.loss], color=INK, marker="o", markersize=5)
            axes.plot([minimum.low, minimum.high], [minimum.loss] * 2, color=INK, linewidth=1.0)
            axes.annotate(f"{quantity(minimum.flops)} FLOPs", (sizes[-1], losses[-1]), fontsize=7, ha="right")
        axes.set(xlabel="parameters without embeddings", ylabel=comparison.metric_name)
        log_ticks(axes.xaxis, EngFormatter(sep=""))

    alt = "; ".join(minimum.words for minimum in entry.minima)
    title = f"Best size of {entry.base} by compute"
    note = f"By the best law, with the range of all laws that the points allow. {alt}."
    return Figure(f"ladder-minima-{series.index}", title, note, f"{alt}.", draw, legend=False)


def _held_out(comparison: Comparison, series: Series, base: str, test: HeldOut) -> Figure:
    def draw(axes: Axes) -> None:
        axes.fill_between(test.tokens, test.low, test.high, color=series.color, alpha=0.18, linewidth=0)
        axes.plot(test.tokens, test.predicted, color=series.color, linestyle=series.dash, label="predicted")
        axes.plot(test.tokens, test.measured, color=INK, marker="o", linestyle="none", label="measured")
        axes.set(xlabel="tokens", ylabel=comparison.metric_name)
        log_ticks(axes.xaxis, EngFormatter(sep=""))
        axes.legend(frameon=False, fontsize=8)

    title = f"{base} at {quantity(test.size)} parameters, from smaller sizes"
    words = f"{test.words[0].upper()}{test.words[1:]}."
    return Figure(f"ladder-held-out-{series.index}", title, words, words, draw, legend=False)


def _multiplier(entry: Multiplier, index: int) -> Figure:
    def draw(axes: Axes, entry: Any = entry) -> None:
        series, top = (
            Series(index, entry.first),
            4 * max(1.0, max((r for r in entry.ratio if np.isfinite(r)), default=1.0)),
        )
        x = np.asarray(entry.flops)
        low, high = (np.minimum(side, top) for side in (entry.low, entry.high))
        axes.axhline(1.0, color=INK, linewidth=1.0)
        axes.fill_between(x, low, high, color=series.color, alpha=0.18, linewidth=0)
        axes.plot(x, np.minimum(entry.ratio, top), color=series.color, marker=series.marker)
        axes.set(xlabel=f"training FLOPs of {entry.second}", ylabel="share of its compute")
        log_ticks(axes.xaxis, EngFormatter(sep=""))

    title = f"Compute of {entry.first} for the loss of {entry.second}"
    words = f"{entry.words[0].upper()}{entry.words[1:]}."
    return Figure(f"ladder-multiplier-{index}", title, f"{words} Below 1: it needs less.", words, draw, legend=False)
