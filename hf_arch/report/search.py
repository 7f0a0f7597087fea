"""The search study, shown and written."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from hf_arch.analysis.comparison import Comparison
from hf_arch.analysis.search import Study, search_study
from hf_arch.core.files import write_json
from hf_arch.core.formats import quantity
from hf_arch.report.names import explained, short_names

STUDY_FILE = "search_study.json"
NUMBERS_WIDTH = 42  # of all columns but the names


def write_study(comparison: Comparison, results_dir: Path) -> Study:
    """The study, also written to `search_study.json`."""
    study = search_study(comparison)
    write_json(results_dir / STUDY_FILE, study.to_dict())
    return study


def print_study(study: Study) -> None:
    """The table, then the recommendation."""
    console = Console(highlight=False)
    table = Table(title="search study", title_justify="left", box=None, pad_edge=False)
    names = short_names([entry.name for entry in study.candidates], console.width - NUMBERS_WIDTH)
    for title in ("run", "params", "ppl", "ppl / M params", "front"):
        named = title == "run"
        table.add_column(title, justify="left" if named else "right", no_wrap=named, overflow="fold")
    for entry in study.candidates:
        row = (names[entry.name], quantity(entry.parameters), f"{entry.perplexity:.2f}", f"{entry.score:.2f}")
        table.add_row(*row, "yes" if entry.on_front else "")
    console.print(table)
    for line in explained(names):
        console.print(line, markup=False)
    console.print(study.words, markup=False)
