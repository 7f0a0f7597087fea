"""What a set tells while it runs, on stderr: a live table on a terminal, plain lines where stderr is a file.

The numbers are read from each run's own `metrics.jsonl`, so that runs of other workers are shown like those of ours.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hf_arch.experiments.planning.plan import Skipped
from hf_arch.experiments.planning.prepare import ReadyRun
from hf_arch.runs.files import METRICS_FILE

STYLES = {"completed": "green", "failed": "red", "running": "cyan", "interrupted": "yellow", "skipped": "dim"}
LINE_SECONDS = 10.0
TAIL_BYTES = 8192
MAX_ROWS = 40  # a live table must fit the screen; rows that are done make room first


class Progress:
    """A context: inside it `tell` reports events, and the table follows the runs."""

    def __init__(
        self, runs: Sequence[ReadyRun], skipped: Sequence[Skipped] = (), console: Console | None = None
    ) -> None:
        self.runs, self.skipped = list(runs), list(skipped)
        self.console = console or Console(stderr=True, highlight=False)
        self._labels = _labels(self.runs)
        self._live = Live(get_renderable=self.table, console=self.console, refresh_per_second=1, transient=True)
        self._stopped = threading.Event()
        self._lines = threading.Thread(target=self._print_steps, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        for entry in self.skipped:
            self.console.print(f"{entry.name}: skipped: {entry.reason}", markup=False, soft_wrap=True)
        if self.console.is_terminal:
            self._live.start()
        else:
            self._lines.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._stopped.set()
        if self.console.is_terminal:
            self._live.stop()
            self.console.print(self.table(all_rows=True))
        else:
            self._lines.join()

    def tell(self, run: ReadyRun, what: str) -> None:
        """Prints one event; the start of a run is in the table already where there is one."""
        if not self.console.is_terminal or what not in ("starts", "completed"):
            self.console.print(f"{self._labels[run.folder]}: {what}", markup=False, soft_wrap=True)

    def table(self, all_rows: bool = False) -> Table:
        """Every run with its status and its last numbers, then what the matrix could not have."""
        rows = [(self._labels[run.folder], *row_of(run)) for run in self.runs]
        done = sum(status == "completed" for _name, status, *_ in rows)
        table = Table(title=f"{done} of {len(rows)} runs completed", title_justify="left", box=None, pad_edge=False)
        for title, justify in (("run", "left"), ("status", "left"), ("step", "right"), ("loss", "right"),
                               ("val loss", "right"), ("tokens/s", "right")):  # fmt: skip
            table.add_column(title, justify=justify, no_wrap=title != "run")  # type: ignore[arg-type]
        shown = (
            rows
            if all_rows or len(rows) <= MAX_ROWS
            else sorted(rows, key=lambda row: row[1] == "completed")[:MAX_ROWS]
        )
        for name, status, *cells in shown:
            table.add_row(name, Text(status, style=STYLES.get(status, "")), *cells)
        if len(shown) < len(rows):
            table.add_row(f"and {len(rows) - len(shown)} more", "", "", "", "", "")
        for entry in self.skipped:
            table.add_row(entry.name, Text("skipped", style="dim"), "", "", "", "")
        return table

    def _print_steps(self) -> None:
        """A line for each run that has come on since the last look."""
        seen: dict[Path, Any] = {}
        while not self._stopped.wait(LINE_SECONDS):
            for run in self.runs:
                step = last_numbers(run.folder).get("step")
                if step is not None and seen.get(run.folder) != step and run.status == "running":
                    seen[run.folder] = step
                    _status, steps, loss, val_loss, speed = row_of(run)
                    text = f"step {steps}: loss {loss}" + (f", val loss {val_loss}" if val_loss else "")
                    self.console.print(
                        f"{self._labels[run.folder]}: {text}, {speed} tokens/s", markup=False, soft_wrap=True
                    )


def row_of(run: ReadyRun) -> tuple[str, str, str, str, str]:
    """Status, step, loss, validation loss, tokens/s of a run, as text."""
    numbers = last_numbers(run.folder)
    step, speed = numbers.get("step"), numbers.get("tokens_per_second")
    return (
        run.status or "waiting",
        "" if step is None else f"{step}/{run.steps}" if run.steps else str(step),
        _loss(numbers.get("loss")),
        _loss(numbers.get("val_loss")),
        "" if speed is None else f"{speed:,.0f}",
    )


def last_numbers(folder: Path) -> dict[str, Any]:
    """The newest value of every key near the end of a run's metrics; empty before there are any."""
    try:
        with (folder / METRICS_FILE).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    numbers: dict[str, Any] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # cut at the start of the tail, or being written
            continue
        if isinstance(row, dict):
            numbers |= {key: value for key, value in row.items() if value is not None}
    return numbers


def _loss(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else ""


def _labels(runs: Sequence[ReadyRun]) -> dict[Path, str]:
    """The names of the runs; where several share one, the seed or the folder tells them apart."""
    names = [run.name for run in runs]
    labels = {}
    for run in runs:
        training = run.config.get("training") or {}
        several = names.count(run.name) > 1
        labels[run.folder] = f"{run.name} (seed {training.get('seed', 0)})" if several else run.name
    return labels
