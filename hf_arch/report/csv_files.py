"""A comparison as CSV files: every number as it was recorded, with all its digits.

A float is written as its shortest form that reads back equal, a missing value as an empty cell, nested values as JSON.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_arch.analysis.comparison import Comparison
from hf_arch.core.files import to_jsonable
from hf_arch.report.folder import write_text


def write_csv_files(comparison: Comparison, folder: Path) -> None:
    """Writes `groups.csv`, `runs.csv`, `pairs.csv`, `claims.csv`, `audit.csv`, and `curves.csv`: a row for each logged
    step of each run, failed ones included, and `mean_curves.csv`: the lines and bands of the figures."""
    document = comparison.to_dict()
    for name, key in (("groups", "groups"), ("runs", "runs"), ("pairs", "pairs"), ("claims", "hypotheses")):
        write_text(folder / f"{name}.csv", csv_text(document[key]))
    write_text(folder / "audit.csv", csv_text(document["audit"]))
    write_text(folder / "curves.csv", csv_text(_curves(comparison)))
    write_text(folder / "mean_curves.csv", csv_text(_mean_curves(comparison)))


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows with a header of all their keys, in order of appearance; "" where there is no row."""
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if not keys:
        return ""
    buffer = io.StringIO()
    writer = csv.writer(buffer)  # its own line ends, \r\n: with others it leaves a bare \r in a text unquoted
    writer.writerow(keys)
    writer.writerows([_cell(row.get(key)) for key in keys] for row in rows)
    return buffer.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value)
    return json.dumps(to_jsonable(value))


def _curves(comparison: Comparison) -> Iterable[dict[str, Any]]:
    for run in comparison.runs:
        head = {"name": run.name, "seed": run.seed, "learning_rate_of_run": run.learning_rate, "status": run.status}
        yield from ({**head, **row} for row in run.metrics)


def _mean_curves(comparison: Comparison) -> Iterable[dict[str, Any]]:
    from hf_arch.report.figures import mean_curve

    for group in comparison.groups:
        for loss in ("loss", "val_loss"):
            for tokens, mean, low, high in mean_curve(group, loss).T.tolist():
                yield {"name": group.name, "loss": loss, "tokens": tokens, "mean": mean, "lowest": low, "highest": high}
