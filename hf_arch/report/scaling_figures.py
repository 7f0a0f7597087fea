"""Figures of loss against size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import EngFormatter

from hf_arch.analysis.scaling import Refused
from hf_arch.report.axes import log_ticks
from hf_arch.report.plots import OKABE_ITO, Figure, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_arch.analysis.comparison import Comparison


def scaling_figures(comparison: Comparison, series_of: list[Series]) -> list[Figure]:
    """The losses of every architecture at several sizes; with a power law and its bootstrap band where they allow one,
    and the reason below them where they do not."""
    looks = {series.name: series for series in series_of}
    found: list[Figure] = []
    for number, law in enumerate(comparison.scaling):
        members = [(looks[name], comparison.group(name)) for name in law.names]

        def draw(axes: Axes, members: Any = tuple(members), fit: Any = law.fit) -> None:
            if not isinstance(fit, Refused):
                x = np.geomspace(fit.sizes[0] / 1.2, fit.sizes[-1] * 2, 80)
                axes.fill_between(x, *fit.band(x), color=OKABE_ITO[0], alpha=0.18, linewidth=0)
                axes.plot(x, fit.predict(x), color=OKABE_ITO[0], label="fit")
            for series, group in members:
                interval = group.interval(comparison.metric)
                axes.plot(
                    [group.mean("params_total")],
                    [interval.mean],
                    color=series.color,
                    marker=series.marker,
                    markersize=7,
                    linestyle="none",
                    label=series.name,
                    gid=series.gid(f"{series.name}: {interval.mean:.3f}"),
                )
            axes.set(xlabel="parameters", ylabel=comparison.metric_name)
            log_ticks(axes.xaxis, EngFormatter(sep=""))

        words = law.words[0].upper() + law.words[1:]
        note = f"{words}." if isinstance(law.fit, Refused) else f"{words}. Band: 95 % bootstrap."
        found.append(Figure(f"scaling-{number}", f"Scaling of {law.architecture}", note, f"{law.words}.", draw))
    return found
