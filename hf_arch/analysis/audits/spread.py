"""How much of the spread over seeds comes from the first weights and how much from the order of the data.

    training: {seed: ..., data_seed: ...}     # two numbers; without the second, one stands for both

Runs of one recipe under several of both are a table of losses, weights by order. Of losses y_ij, with I starts and J
orders, the mean squares of rows, columns and what is left of both (two-way analysis of variance, one run a cell) give

    var(start) = max(0, (MS_rows - MS_rest) / J),  var(order) = max(0, (MS_columns - MS_rest) / I),  var(rest) = MS_rest
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_arch.analysis.finding import Finding
from hf_arch.analysis.question import flat_config
from hf_arch.analysis.run_names import by_value, run_labels
from hf_arch.runs.record import RunRecord

LOSS = "final_val_loss"


def check_spread(runs: Sequence[RunRecord]) -> Finding | None:
    """What of the spread is of either seed, for recipes that were run under several of both, or of one alone."""
    found = {}
    known = [run for run in runs if run.completed and run.config and run.seed is not None and run.data_seed is not None]
    for same in by_value(known, _recipe).values():
        losses = {(int(run.seed or 0), int(run.data_seed or 0)): run.numbers[LOSS] for run in same}
        if words := spread_words(losses):
            found[same[0].architecture if len({run.name for run in same}) > 1 else same[0].name] = words, same
    if not found:
        return None
    text = "; ".join(f"{name}: {words}" for name, (words, _) in found.items())
    told = [run for _, same in found.values() for run in same]
    return Finding("spread", "note", f"Standard deviation of the loss over seeds: {text}.", run_labels(told))


def spread_words(losses: dict[tuple[int, int], float]) -> str:
    """The parts of the spread of {(seed of the weights, seed of the order): loss}; empty where both always change."""
    starts, orders = (sorted({pair[i] for pair in losses}) for i in (0, 1))
    if len(starts) > 1 and len(orders) > 1:
        if len(losses) < len(starts) * len(orders):
            return ""  # only the diagonal, or a table with holes: the parts are not apart
        start, order, rest = variance_parts(np.array([[losses[i, j] for j in orders] for i in starts]))
        parts = f"{start**0.5:.2g} by the first weights, {order**0.5:.2g} by the order of the data"
        return f"{parts}, {rest**0.5:.2g} by both together ({len(starts)} starts, {len(orders)} orders)"
    if len(losses) < 2:
        return ""
    what = "the first weights alone" if len(starts) > 1 else "the order of the data alone"
    return f"{float(np.std(list(losses.values()), ddof=1)):.2g} by {what} ({len(losses)} seeds)"


def variance_parts(table: np.ndarray) -> tuple[float, float, float]:
    """(of rows, of columns, of the rest): variances from losses [I, J], I, J >= 2; none is below 0."""
    rows, columns = table.shape
    by_row, by_column = table.mean(axis=1), table.mean(axis=0)
    rest = table - by_row[:, None] - by_column[None, :] + table.mean()
    of_rest = float((rest**2).sum()) / ((rows - 1) * (columns - 1))
    of_rows = (columns * float(by_row.var(ddof=1)) - of_rest) / columns
    of_columns = (rows * float(by_column.var(ddof=1)) - of_rest) / rows
    return max(0.0, of_rows), max(0.0, of_columns), of_rest


def _recipe(run: RunRecord) -> str:
    """Equal for runs that differ in their seeds alone."""
    return repr((run.architecture, run.learning_rate, sorted(flat_config(run).items(), key=repr)))
