"""What a set prints while it runs, on stderr: a live table on a terminal, plain lines where stderr is a file.

Each run has its state, its last numbers, and its validation loss less that of the baseline's run of the same seed at
equal tokens; the title says about how long the whole set still takes. The numbers are read from each run's own
`metrics.jsonl`, so that runs of other workers are shown like those of ours.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hf_arch.core.formats import duration, quantity
from hf_arch.experiments.execution.curves import Curve
from hf_arch.experiments.planning.plan import Skipped
from hf_arch.experiments.planning.prepare import ReadyRun
from hf_arch.recipe.recipe import RUN_FACTS
from hf_arch.runs.record import group_name

STYLES = {"completed": "green", "failed": "red", "running": "cyan", "interrupted": "yellow", "skipped": "dim"}
LINE_SECONDS = 10.0
MAX_ROWS = 40  # a live table must fit the screen; rows that are done make room first


class Progress:
    """A context: inside it `report` prints events, and the table follows the runs."""

    def __init__(
        self, runs: Sequence[ReadyRun], skipped: Sequence[Skipped] = (), console: Console | None = None
    ) -> None:
        self.runs, self.skipped = list(runs), list(skipped)
        self.console = console or Console(stderr=True, highlight=False)
        self._labels = _labels(self.runs)
        self._curves = {run.folder: Curve(run.folder) for run in self.runs}
        self._baselines = {run.folder: _baseline_of(run, self.runs) for run in self.runs}
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

    def report(self, run: ReadyRun, what: str) -> None:
        """Prints one event; the start of a run is in the table already where there is one."""
        if not self.console.is_terminal or what not in ("starts", "completed"):
            left = self.seconds_left() if what == "completed" else None
            more = f"; about {duration(left)} left for the set" if left else ""
            self.console.print(f"{self._labels[run.folder]}: {what}{more}", markup=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """About how long the set still takes, with as many runs at a time as are running now; None before a first speed
        is known. A run that has not begun takes what others of its name took, else what the mean of all did.
        """
        records = {run.folder: run.record for run in self.runs}
        status = {folder: None if record is None else record.status for folder, record in records.items()}
        whole: dict[str, list[float]] = {}
        begun: dict[Path, float] = {}
        for run in self.runs:
            curve, record = self._curves[run.folder].update(), records[run.folder]
            if record is not None and record.status == "completed":
                if seconds := record.numbers.get("wall_seconds"):
                    whole.setdefault(run.name, []).append(float(seconds))
            elif status[run.folder] == "running" and (left := curve.seconds_left(run.steps)) is not None:
                begun[run.folder] = left
                steps = int(curve.newest["step"])
                if run.steps and steps and run.steps > steps:
                    whole.setdefault(run.name, []).append(left * run.steps / (run.steps - steps))
        means = {name: sum(values) / len(values) for name, values in whole.items()}
        if not means:
            return None
        typical = sum(means.values()) / len(means)
        waiting = [run for run in self.runs if status[run.folder] != "completed" and run.folder not in begun]
        total = sum(begun.values()) + sum(means.get(run.name, typical) for run in waiting)
        return total / max(1, sum(value == "running" for value in status.values()))

    def against_baseline(self, run: ReadyRun) -> str:
        """Loss less the baseline's at equal tokens, and which; empty for the baseline and before both have one."""
        baseline = self._baselines[run.folder]
        if baseline is None:
            return ""
        found = self._curves[run.folder].update().ahead_of(self._curves[baseline.folder].update())
        return "" if found is None else f"{found[0]:+.4f} at {quantity(found[1])}"

    def table(self, all_rows: bool = False) -> Table:
        """Every run with its status and its last numbers, then the skipped points of the matrix."""
        rows = [
            (self._labels[run.folder], *row_of(run, self._curves[run.folder]), self.against_baseline(run))
            for run in self.runs
        ]
        done = sum(status == "completed" for _name, status, *_ in rows)
        left = self.seconds_left() if done < len(rows) and not all_rows else None
        title = f"{done} of {len(rows)} runs completed" + ("" if left is None else f", about {duration(left)} left")
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for title, justify in (("run", "left"), ("status", "left"), ("step", "right"), ("loss", "right"),
                               ("val loss", "right"), ("tokens/s", "right"), ("vs baseline", "right")):  # fmt: skip
            table.add_column(title, justify=justify, no_wrap=title != "run")  # type: ignore[arg-type]
        shown = (
            rows
            if all_rows or len(rows) <= MAX_ROWS
            else sorted(rows, key=lambda row: row[1] == "completed")[:MAX_ROWS]
        )
        for name, status, *cells in shown:
            table.add_row(name, Text(status, style=STYLES.get(status, "")), *cells)
        if len(shown) < len(rows):
            table.add_row(f"and {len(rows) - len(shown)} more", *[""] * 6)
        for entry in self.skipped:
            table.add_row(entry.name, Text("skipped", style="dim"), *[""] * 5)
        return table

    def _print_steps(self) -> None:
        """A line for each run that has come on since the last look."""
        seen: dict[Path, Any] = {}
        while not self._stopped.wait(LINE_SECONDS):
            for run in self.runs:
                newest = self._curves[run.folder].update().newest
                step = newest.get("step")
                known = "loss" in newest or "val_loss" in newest  # an event may come before the first of them
                if known and step is not None and seen.get(run.folder) != step and run.status == "running":
                    seen[run.folder] = step
                    self.console.print(f"{self._labels[run.folder]}: {self._line(run)}", markup=False, soft_wrap=True)

    def _line(self, run: ReadyRun) -> str:
        """Where a run is, with what is known of it."""
        _status, steps, loss, val_loss, speed = row_of(run, self._curves[run.folder])
        named = {"loss": loss, "val loss": val_loss}
        text = f"step {steps}: " + ", ".join(f"{name} {value}" for name, value in named.items() if value)
        if ahead := self.against_baseline(run):
            text += f" ({ahead} tokens against the baseline)"
        return text + (f", {speed} tokens/s" if speed else "")


def row_of(run: ReadyRun, curve: Curve) -> tuple[str, str, str, str, str]:
    """Status, step, loss, validation loss, tokens/s of a run, as text."""
    numbers = curve.update().newest
    step, speed = numbers.get("step"), numbers.get("tokens_per_second")
    return (
        run.status or "waiting",
        "" if step is None else f"{step}/{run.steps}" if run.steps else str(step),
        _loss(numbers.get("loss")),
        _loss(numbers.get("val_loss")),
        "" if speed is None else f"{speed:,.0f}",
    )


def _baseline_of(run: ReadyRun, runs: Sequence[ReadyRun]) -> ReadyRun | None:
    """The baseline's run of the same seed; None for the baseline itself, and where there is none."""
    name = (run.config.get(RUN_FACTS) or {}).get("baseline")
    if name is None or group_name(run.name) == name:
        return None
    return next((other for other in runs if group_name(other.name) == name and _seed(other) == _seed(run)), None)


def _seed(run: ReadyRun) -> Any:
    return (run.config.get("training") or {}).get("seed", 0)


def _loss(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else ""


def _labels(runs: Sequence[ReadyRun]) -> dict[Path, str]:
    """The names of the runs; where several share one, with the seed."""
    names = [run.name for run in runs]
    labels = {}
    for run in runs:
        several = names.count(run.name) > 1
        labels[run.folder] = f"{run.name} (seed {_seed(run)})" if several else run.name
    return labels
