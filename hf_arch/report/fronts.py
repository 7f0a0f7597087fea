"""Quality against what it costs: a figure for each cost in which the groups differ, with what nothing dominates."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import EngFormatter

from hf_arch.analysis.search import pareto_front
from hf_arch.core.formats import byte_size, duration, quantity
from hf_arch.report.axes import log_ticks, plain_ticks
from hf_arch.report.plots import INK, Figure, series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_arch.analysis.comparison import Comparison
    from hf_arch.analysis.groups import Group


def seconds_per_token(group: Group) -> float | None:
    """Seconds of training a token, without evaluations; None where no speed was measured."""
    speed = group.mean("train_tokens_per_second")
    return 1.0 / speed if speed else None


def _training_flops(group: Group) -> float | None:
    tokens, per_token = group.mean("tokens_seen"), group.mean("flops_per_token")
    return None if tokens is None or per_token is None else tokens * per_token


def _training_seconds(group: Group) -> float | None:
    tokens, per_token = group.mean("tokens_seen"), seconds_per_token(group)
    return None if tokens is None or per_token is None else tokens * per_token


# What a model costs: key, axis, how a value is written, whether more of it is better, and its value of a group.
COSTS: tuple[tuple[str, str, Callable[[float], str], bool, Callable[[Group], float | None]], ...] = (
    ("params_total", "parameters", quantity, False, lambda group: group.mean("params_total")),
    ("flops", "training FLOPs", quantity, False, _training_flops),
    ("time", "training time (seconds)", duration, False, _training_seconds),
    ("state_bytes", "cache or state per sequence", byte_size, False, lambda group: group.mean("state_bytes")),
    (
        "decode_tokens_per_second", "decoding speed (tokens/s)", quantity, True,
        lambda group: group.mean("decode_tokens_per_second"),
    ),
)  # fmt: skip
EQUAL = 1.05
"""Costs whose largest is less than this many times the smallest are called equal, and no front is drawn over them."""


def fronts(comparison: Comparison) -> list[Figure]:
    """Quality against each cost in which the groups differ, with the front of those that nothing dominates; what was
    left out, since the groups are (made) equal in it, is said below the first figure."""
    found, equal = [], []
    for key, label, show, more_is_better, cost_of in COSTS:
        points = [
            (series, cost, interval)
            for series, group in zip(series_of(comparison), comparison.groups, strict=True)
            if (cost := cost_of(group)) is not None and (interval := group.interval(comparison.metric)) is not None
        ]
        if len(points) < 2:
            continue
        if 0 < max(cost for _s, cost, _i in points) < EQUAL * min(cost for _s, cost, _i in points):
            equal.append(re.sub(r" \(.*", "", label))
            continue
        quality = -1.0 if not comparison.lower_is_better else 1.0
        front = pareto_front([(-c if more_is_better else c, quality * i.mean) for _s, c, i in points])

        def draw(
            axes: Axes, points: Any = tuple(points), front: Any = tuple(front), label: str = label, show: Any = show
        ) -> None:
            costs = [cost for _series, cost, _interval in points]
            line = sorted((costs[i], points[i][2].mean) for i in front)
            axes.plot(*zip(*line, strict=True), color=INK, linewidth=1.0, linestyle=(0, (3, 3)), alpha=0.6)
            for series, cost, interval in points:
                if interval.low is not None:
                    axes.plot([cost, cost], [interval.low, interval.high], color=series.color, linewidth=1.2, alpha=0.7)
                axes.plot(
                    [cost], [interval.mean], color=series.color, marker=series.marker, markersize=7.5, linestyle="none",
                    label=series.name, gid=series.gid(f"{series.name}: {show(cost)}, {interval.mean:.3f}"),
                )  # fmt: skip
            axes.margins(x=0.12)
            axes.set(xlabel=label, ylabel=comparison.metric_name)
            if show is byte_size or max(costs) / min(costs) > 8:
                log_ticks(axes.xaxis, show if show is byte_size else EngFormatter(sep=""))
            else:
                plain_ticks(axes.xaxis, ())

        best = ", ".join(points[i][0].name for i in front)
        alt = "; ".join(f"{series.name}: {show(cost)}, {interval.mean:.3f}" for series, cost, interval in points)
        note = f"Unbeaten in both at once (dashed line): {best}."
        title = f"Quality against {re.sub(r' [(].*', '', label)}"
        found.append(Figure(f"pareto-{key}", title, note, f"{alt}.", draw))
    if found and equal:
        note = f"{found[0].note} No plot against {', '.join(equal)}, in which these runs are equal within 5 %."
        found[0] = replace(found[0], note=note)
    return found
