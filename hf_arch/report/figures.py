"""What is drawn of a comparison: differences, loss curves, Pareto fronts, bars, scaling fits, learning-rate curves.

Each function returns the figures that the measured numbers allow; `hf_arch.report.plots` renders them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from hf_arch.analysis.columns import interval_text
from hf_arch.analysis.curves import shared_curve
from hf_arch.core.formats import byte_size, quantity
from hf_arch.report.axes import (
    BYTES,
    SECONDS,
    Units,
    axis_unit,
    log_ticks,
    name_axis,
    plain_ticks,
    rows_height,
)
from hf_arch.report.fronts import fronts, seconds_per_token
from hf_arch.report.ladder_figures import ladder_figures
from hf_arch.report.plots import INK, Figure, Series, series_of
from hf_arch.report.scaling_figures import scaling_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_arch.analysis.comparison import Comparison
    from hf_arch.analysis.groups import Group
    from hf_arch.analysis.stats import Interval

MAX_CURVES = 12


def figures(comparison: Comparison) -> dict[str, list[Figure]]:
    """{section: figures} of all that the measured numbers allow."""
    if comparison.ladder is not None:
        return {"Ladder": ladder_figures(comparison)}
    sections = {
        "Quality": [*_means(comparison), *_forest(comparison)],
        "Loss curves": [*_curves(comparison)],
        "Quality against cost": [*fronts(comparison)],
        "Speed and size": [*_bars(comparison)],
        "Scaling": scaling_figures(comparison, series_of(comparison)),
        "Learning rates": [*_learning_rates(comparison)],
    }
    return {section: found for section, found in sections.items() if found}


class _Curve(NamedTuple):
    """The curve of a group: (tokens, mean, lowest, highest) loss in `points` [4, N], and (tokens, loss) at its end."""

    series: Series
    group: Group
    points: np.ndarray
    final: tuple[float, float]


def _curves(comparison: Comparison) -> list[Figure]:
    """Validation loss (training loss where there is none) against tokens, training FLOPs and training time."""
    shown = [
        (series, group) for series, group in zip(series_of(comparison), comparison.groups, strict=True) if group.counted
    ][:MAX_CURVES]
    rows = (row for _series, group in shown for run in group.counted for row in run.metrics)
    key = "val_loss" if any("val_loss" in row for row in rows) else "loss"
    means = [(series, group, mean_curve(group, key)) for series, group in shown]
    curves = [
        _Curve(series, group, curve, _final(group, curve, key)) for series, group, curve in means if curve.shape[1] > 1
    ]
    if not curves:
        return []
    loss = "validation loss" if key == "val_loss" else "training loss"
    ends = ", ".join(f"{curve.series.name} {curve.final[1]:.3f}" for curve in curves)
    told = _final_words([(curve.group, curve.points, curve.final) for curve in curves])
    axes_kinds: tuple[tuple[str, str, Callable[[Group], float | None], Units], ...] = (
        ("tokens", "tokens", lambda _group: 1.0, ()),
        ("flops", "training FLOPs", lambda group: group.mean("flops_per_token"), ()),
        ("time", "training time", seconds_per_token, SECONDS),
    )
    found = []
    for kind, label, per_token, units in axes_kinds:
        lines = [(curve, factor) for curve in curves if (factor := per_token(curve.group)) is not None]
        if not lines:
            continue
        note = "Time: tokens over the speed in training, without evaluations. " if kind == "time" else ""
        found.append(
            Figure(
                f"curve-{kind}",
                f"{loss.capitalize()} against {label}",
                f"Lines: mean over seeds; bands: lowest to highest seed. {note}{told}".strip(),
                f"Groups at the end of training: {ends}.",
                partial(_draw_curves, lines=lines, label=label, units=units, loss=loss, mark_ends=bool(told)),
            )
        )
    return found


def _draw_curves(
    axes: Axes, lines: Sequence[tuple[_Curve, float]], label: str, units: Units, loss: str, mark_ends: bool
) -> None:
    """Curves with their tokens times a factor along x."""
    size, unit = axis_unit(max(factor * curve.points[0].max() for curve, factor in lines), units)
    for (series, _group, (tokens, mean, low, high), final), factor in lines:
        x = tokens * factor / size
        axes.fill_between(x, low, high, color=series.color, alpha=0.18, linewidth=0)
        axes.plot(
            x, mean, color=series.color, linestyle=series.dash, label=series.name, gid=series.gid(),
            marker=series.marker, markevery=max(1, len(x) // 6), markersize=4,
        )  # fmt: skip
        if mark_ends:
            axes.plot(
                [final[0] * factor / size], [final[1]], linestyle="none", zorder=5,
                marker=series.marker, markersize=6, markerfacecolor="none", color=series.color,
            )  # fmt: skip
    bottom = min(min(curve.points[2].min(), curve.final[1]) for curve, _factor in lines)
    top = max(np.interp(0.12 * curve.points[0][-1], curve.points[0], curve.points[3]) for curve, _factor in lines)
    top = max(top, bottom + 1e-3)
    axes.set_ylim(bottom - 0.04 * (top - bottom), top)  # the first fall would flatten all that follows
    axes.set(xlabel=f"{label} ({unit})" if unit else label, ylabel=f"{loss} (nats)")
    plain_ticks(axes.xaxis, units)


def _final(group: Group, curve: np.ndarray, key: str) -> tuple[float, float]:
    """(tokens, loss) at the end of training: of a validation loss the number that the table has."""
    loss = group.mean("final_val_loss") if key == "val_loss" else None
    if loss is None:
        return float(curve[0][-1]), float(curve[1][-1])
    return max(float(curve[0][-1]), group.mean("tokens_seen") or 0.0), loss


def _final_words(ends: Sequence[tuple[Group, np.ndarray, tuple[float, float]]]) -> str:
    """What tells the table's losses from the ends of the lines; empty where they agree in the digits that are shown."""
    if all(abs(final[1] - curve[1][-1]) < 5e-4 for _group, curve, final in ends):
        return ""
    evaluations = [run.config.get("evaluation") or {} for group, _curve, _final in ends for run in group.counted]
    rows = {(found.get("sequences", 256), found.get("final_sequences")) for found in evaluations}
    lines, table = rows.pop() if len(rows) == 1 else (None, None)
    words = "all validation rows" if table is None else f"the first {table} validation rows"
    scored = f" on {words}; the lines are scored on the first {lines}" if lines is not None and lines != table else ""
    return f"Open marks: the loss in the table, measured after training{scored}."


def mean_curve(group: Group, key: str) -> np.ndarray:
    """A loss over the counted runs at the steps that all of them have: float64 [4, n], rows tokens, mean, low, high."""
    tokens, losses = shared_curve(group.counted, key)
    if not tokens.size:
        return np.empty((4, 0))
    return np.stack([tokens, losses.mean(axis=0), losses.min(axis=0), losses.max(axis=0)])


def _means(comparison: Comparison) -> list[Figure]:
    """Every group's mean with its interval: dots, because a bar from zero would hide the differences."""
    rows = [
        (series, interval)
        for series, group in zip(series_of(comparison), comparison.groups, strict=True)
        if (interval := group.interval(comparison.metric)) is not None
    ]
    if not rows:
        return []

    def draw(axes: Axes) -> None:
        for y, (series, interval) in enumerate(rows):
            text = f"{series.name}: {interval_text(interval)}"
            _dot(axes, series, y, interval, text)
        name_axis(axes, [series.name for series, _interval in rows])
        axes.set_xlabel(comparison.metric_name)
        axes.xaxis.set_major_locator(MaxNLocator(4))

    alt = "; ".join(f"{series.name} {interval_text(interval)}" for series, interval in rows)
    title = comparison.metric_name.capitalize()
    note = "Mean over seeds with its 95 % interval. A seed moves all groups; the paired differences take that out."
    return [
        Figure("means", title, note, f"{alt}.", draw, height=rows_height([row[0].name for row in rows]), legend=False)
    ]


def _dot(axes: Axes, series: Series, y: int, interval: Interval, text: str) -> None:
    """A mean and its interval on row `y`."""
    if interval.low is not None and interval.high is not None:
        axes.plot([interval.low, interval.high], [y, y], color=series.color, linewidth=2.2)
    axes.plot(
        [interval.mean],
        [y],
        color=series.color,
        marker=series.marker,
        markersize=7,
        linestyle="none",
        label=series.name,
        gid=series.gid(text),
    )


def _forest(comparison: Comparison) -> list[Figure]:
    """Every group's paired difference to the baseline with its interval: left of the line is better."""
    rows = []
    for series in series_of(comparison):
        pair = comparison.pair(series.name, comparison.baseline) if comparison.baseline else None
        if pair is not None and pair.interval is not None:
            rows.append((series, pair.interval, pair.words))
    if not rows:
        return []

    reach = _reach([interval for _series, interval, _words in rows])

    def draw(axes: Axes) -> None:
        axes.axvline(0.0, color=INK, linewidth=1.0)
        if reach is not None:
            axes.set_xlim(-reach, reach)
        for y, (series, difference, words) in enumerate(rows):
            _dot(axes, series, y, difference, f"{series.name}: {words}")
        name_axis(axes, [series.name for series, _difference, _words in rows])
        axes.set_xlabel(f"{'lower' if comparison.lower_is_better else 'higher'} is better")
        axes.xaxis.set_major_locator(MaxNLocator(4))

    alt = "; ".join(f"{series.name} {words}" for series, _difference, words in rows)
    title = f"Difference to {comparison.baseline}, seed by seed"
    families = comparison.families
    controls = f" (over {families['controls']} where one is a control)" if families.get("controls") else ""
    tested = any(difference.low is not None for _series, difference, _words in rows)
    level = (
        f"each interval at the level at which Holm's correction over all {families['pairs']} pairs{controls} tests it"
    )
    if families["pairs"] == 1 and not controls:
        level = "with its 95 % interval"
    note = (
        f"Mean paired difference in {comparison.metric_name}, {level}: it leaves out zero where "
        "the table says better or worse."
        if tested
        else f"Difference in {comparison.metric_name}; one seed has no interval."
    )
    if reach is not None:
        note += " Intervals that end at the edge are longer; the table has them whole."
    return [
        Figure(
            "differences",
            title,
            note,
            f"{alt}.",
            draw,
            height=rows_height([row[0].name for row in rows]),
            legend=False,
        )
    ]


def _reach(intervals: Sequence[Interval]) -> float | None:
    """How far from zero the axis of differences goes where some intervals would hide all the rest; else None."""
    bounds = [(one.low, one.high) for one in intervals if one.low is not None and one.high is not None]
    if not bounds:
        return None
    widths = [(high - low) / 2 for low, high in bounds]
    reach = max(4 * max(abs(interval.mean) for interval in intervals), 2 * median(widths))
    return reach if max(max(-low, high) for low, high in bounds) > 1.5 * reach else None


def _bars(comparison: Comparison) -> list[Figure]:
    """Plain bars from zero for what is a quantity: speeds, memory, FLOPs."""
    kinds = (
        ("train_tokens_per_second", "Training speed", "tokens/s", quantity),
        ("decode_tokens_per_second", "Decoding speed", "tokens/s", quantity),
        ("peak_memory_bytes", "Peak memory in training", "", byte_size),
        ("state_bytes", "Cache or state per sequence", "", byte_size),
        ("flops_per_token", "Training FLOPs per token", "FLOPs", quantity),
        ("params_total", "Parameters", "parameters", quantity),
    )
    found = []
    for key, title, label, show in kinds:
        values = [
            (series, value)
            for series, group in zip(series_of(comparison), comparison.groups, strict=True)
            if (value := group.mean(key)) is not None
        ]
        if not values:
            continue

        def draw(axes: Axes, values: Any = tuple(values), label: str = label, show: Any = show) -> None:
            units = BYTES if show is byte_size else ()
            size, unit = axis_unit(max(value for _series, value in values), units)
            for y, (series, value) in enumerate(values):
                bar = axes.barh([y], [value / size], height=0.62, color=series.color, label=series.name)
                bar[0].set_gid(series.gid(f"{series.name}: {show(value)}"))
                axes.annotate(show(value), (value / size, y), xytext=(4, 0), textcoords="offset points", va="center")
            name_axis(axes, [series.name for series, _value in values])
            axes.set_xlabel(unit or label)
            axes.set_xlim(0, 1.28 * max(value for _series, value in values) / size or 1.0)
            plain_ticks(axes.xaxis, units)

        alt = "; ".join(f"{series.name} {show(value)}" for series, value in values)
        found.append(
            Figure(
                f"bar-{key}",
                title,
                "",
                f"{alt}.",
                draw,
                height=rows_height([series.name for series, _value in values]),
                legend=False,
            )
        )
    return found


def _learning_rates(comparison: Comparison) -> list[Figure]:
    """The learning-rate curve of every group that tried more than one."""
    swept = [
        (series, group)
        for series, group in zip(series_of(comparison), comparison.groups, strict=True)
        if len(group.rates) > 1
    ][:MAX_CURVES]
    if not swept:
        return []

    def draw(axes: Axes) -> None:
        for series, group in swept:
            rates = list(group.rates)
            axes.plot(
                rates, [group.rates[rate].mean for rate in rates], color=series.color, linestyle=series.dash,
                marker=series.marker, label=series.name, gid=series.gid(),
            )  # fmt: skip
        axes.set(xlabel="learning rate", ylabel=comparison.metric_name)
        log_ticks(axes.xaxis, lambda rate: f"{rate:.3g}")

    alt = "; ".join(f"{series.name}: best at {group.reference.learning_rate:.3g}" for series, group in swept)
    note = f"Mean {comparison.metric_name} at each rate; the table has the best."
    return [Figure("learning-rates", "Learning-rate sweep", note, f"{alt}.", draw)]
