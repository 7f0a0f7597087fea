"""The search study: of many sizes, the smallest model with a good perplexity, as a table and in words.

    score = validation perplexity / million parameters

The score is reported because it is asked for; it falls with size whatever the quality, so the recommendation goes by
the Pareto front of parameters and perplexity instead: the smallest model on it within `SLACK` of the best perplexity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hf_arch.analysis.columns import quantity
from hf_arch.analysis.comparison import Comparison
from hf_arch.report.figures import pareto_front
from hf_arch.runs.store import write_json_atomic

SLACK = 0.05
STUDY_FILE = "search_study.json"


@dataclass(frozen=True)
class Candidate:
    """One size: its parameters (count), validation perplexity, perplexity per million parameters, and whether no
    other size is both smaller and better.
    """

    name: str
    parameters: float
    perplexity: float
    score: float
    on_front: bool


@dataclass(frozen=True)
class Study:
    """The candidates from the smallest to the largest, the recommended one, and why."""

    candidates: tuple[Candidate, ...]
    recommended: str | None
    words: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def print(self, console: Console | None = None) -> None:
        """The table, then the recommendation."""
        console = console or Console(highlight=False)
        table = Table(title="search study", title_justify="left", box=None, pad_edge=False)
        for title in ("run", "params", "ppl", "ppl / M params", "front"):
            table.add_column(title, justify="left" if title == "run" else "right", overflow="fold")
        for entry in self.candidates:
            row = (entry.name, quantity(entry.parameters), f"{entry.perplexity:.2f}", f"{entry.score:.2f}")
            table.add_row(*row, "yes" if entry.on_front else "")
        console.print(table)
        console.print(self.words, markup=False)


def search_study(comparison: Comparison) -> Study:
    """What the completed runs of `comparison` say about size."""
    measured = [
        (group.name, parameters, perplexity)
        for group in comparison.groups
        if (parameters := group.mean("params_total")) and (perplexity := group.mean("final_val_perplexity"))
    ]
    measured.sort(key=lambda entry: entry[1:])
    front = pareto_front([(parameters, perplexity) for _name, parameters, perplexity in measured])
    candidates = tuple(
        Candidate(name, parameters, perplexity, perplexity / (parameters / 1e6), index in front)
        for index, (name, parameters, perplexity) in enumerate(measured)
    )
    if not candidates:
        return Study((), None, "No run completed: there is nothing to recommend.")
    best = min(candidates, key=lambda entry: entry.perplexity)
    chosen = next(entry for entry in candidates if entry.on_front and entry.perplexity <= (1 + SLACK) * best.perplexity)
    return Study(candidates, chosen.name, _words(chosen, best, len(candidates)))


def write_study(comparison: Comparison, results_dir: Path) -> Study:
    """The study, also written to `search_study.json`."""
    study = search_study(comparison)
    write_json_atomic(results_dir / STUDY_FILE, study.to_dict())
    return study


def _words(chosen: Candidate, best: Candidate, count: int) -> str:
    sentence = (
        f"Recommended: {chosen.name}, {quantity(chosen.parameters)} parameters, perplexity {chosen.perplexity:.2f}."
    )
    if chosen is best:
        return f"{sentence} It is the best of {count}, and no smaller one comes within {SLACK:.0%} of it."
    worse = chosen.perplexity / best.perplexity - 1
    return (
        f"{sentence} It is {worse:.1%} worse than the best of {count} ({best.name}, {best.perplexity:.2f}) "
        f"with {chosen.parameters / best.parameters:.0%} of its parameters."
    )
