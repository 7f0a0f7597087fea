"""The columns of a comparison: one list for the terminal, the HTML page and the model card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from hf_arch.analysis.groups import Group
from hf_arch.analysis.measured import Measured
from hf_arch.analysis.stats import Interval, t_interval
from hf_arch.core.formats import MISSING, with_half_width
from hf_arch.runs.columns import FilledColumn
from hf_arch.runs.numbers import Number, Reader
from hf_arch.runs.record import numbers_for


@dataclass(frozen=True)
class Column:
    """`cell` writes a group's value. `key` is its number in results.json; `help` says what it is, with the unit."""

    key: str
    title: str
    help: str
    cell: Callable[[Measured, Group], str]


def interval_text(interval: Interval | None, decimals: int = 3) -> str:
    """`1.523 ± 0.012`; the mean alone where there is no interval, a dash where there is no value."""
    if interval is None:
        return MISSING
    return with_half_width(interval.mean, interval.half_width, decimals)


def seeds_text(group: Group) -> str:
    """How many seeds stand behind a row, and how many runs did not complete: `2 (1 failed, 1 running)`."""
    text = f"{len(group.counted)}"
    states = Counter(run.status if run.status != "completed" else "failed" for run in group.runs if not run.completed)
    return f"{text} ({', '.join(f'{count} {state}' for state, count in states.items())})" if states else text


def _number_column(number: Number) -> Column:
    def cell(_measured: Measured, group: Group) -> str:
        if number.decimals is not None:
            return interval_text(group.interval(number.key), number.decimals)
        mean = group.mean(number.key)
        return MISSING if mean is None else number.show(mean)

    return Column(number.key, number.column, number.help, cell)


_VERSUS_BASELINE = Column(
    "versus_baseline",
    "vs baseline",
    "paired difference by seed to the baseline, with the interval of Holm's correction over all pairs",
    lambda measured, group: measured.versus_baseline(group.name) or MISSING,
)


def _columns() -> list[Column]:
    columns = [_number_column(number) for number in numbers_for(Reader.TABLE)]
    after = next(index for index, column in enumerate(columns) if column.key == "final_val_loss")
    columns.insert(after + 1, _VERSUS_BASELINE)
    seeds = Column("seeds", "seeds", "completed seeds behind the row", lambda _measured, group: seeds_text(group))
    rate = Column(
        "learning_rate",
        "lr",
        "learning rate of the row: the best of those tried",
        lambda _measured, group: (
            MISSING if group.reference.learning_rate is None else f"{group.reference.learning_rate:.3g}"
        ),
    )
    return [*columns, seeds, rate]


COLUMNS: tuple[Column, ...] = tuple(_columns())
BENCHMARK_METRICS = {"acc": "acc", "acc_norm": "acc norm", "bits_per_byte": "bits/byte", "margin": "margin"}
"""{metric of a benchmark that is a column: its short name}; `acc_norm` only where a task has no `acc`."""


def benchmark_scores(group: Group) -> dict[str, Interval]:
    """{`task metric`: mean and t interval over seeds} of what `hf-arch eval` scored of the counted runs."""
    values: dict[str, list[float]] = {}
    for run in group.counted:
        for task, scores in run.benchmarks.items():
            for metric in BENCHMARK_METRICS:
                if metric in scores and not (metric == "acc_norm" and "acc" in scores):
                    values.setdefault(f"{task} {metric}", []).append(float(scores[metric]))
    return {name: t_interval(found) for name, found in values.items()}


def benchmark_columns(measured: Measured) -> list[Column]:
    """A column for each task and score of `hf-arch eval` that any group has, in the order of the tasks' names."""
    scores = {group.name: benchmark_scores(group) for group in measured.groups}
    names = sorted({name for found in scores.values() for name in found})

    def column(name: str) -> Column:
        task, _, metric = name.rpartition(" ")
        title, what = f"{task} {BENCHMARK_METRICS[metric]}", f"`hf-arch eval`: {metric} of {task}, mean over seeds"
        return Column(
            name.replace(" ", "."), title, what, lambda _all, group: interval_text(scores[group.name].get(name))
        )

    return [column(name) for name in names]


def metric_columns(measured: Measured) -> list[Column]:
    """A column for each number that plugins measured of the runs."""
    return [
        _number_column(number)
        for number in numbers_for(Reader.TABLE, measured.runs)
        if number.key not in {column.key for column in COLUMNS}
    ]


def plugin_columns(measured: Measured) -> list[Column]:
    """A column for each that a plugin registers."""

    def column(filled: FilledColumn) -> Column:
        def cell(_measured: Measured, group: Group) -> str:
            numbers, texts = filled.numbers(group.counted), filled.texts(group.counted)
            if not numbers:
                return ", ".join(texts) or MISSING
            interval = t_interval(numbers)
            if filled.decimals is not None:
                return interval_text(interval, filled.decimals)
            return filled.number.show(interval.mean)

        return Column(filled.name, filled.number.column, filled.number.help, cell)

    return [column(filled) for filled in measured.plugin_columns]


def filled_columns(measured: Measured) -> list[Column]:
    """The columns that hold a value for any group."""
    return [
        column
        for column in (
            *COLUMNS,
            *metric_columns(measured),
            *plugin_columns(measured),
            *benchmark_columns(measured),
        )
        if any(column.cell(measured, group) != MISSING for group in measured.groups)
    ]
