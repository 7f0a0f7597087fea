"""Experiments: recipes, plans, matched runs, and what is made of their results. For notebooks:

    import hf_arch.experiments as experiments

    heads = experiments.load("results/heads")      # a Comparison
    heads.print()                                  # audit, table, statements
    heads.verdicts
    experiments.compare(["results/heads", "results/depth"])

Importing the package loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from hf_arch.experiments.comparison import Comparison
    from hf_arch.experiments.store import RunResult

    Source = str | Path | Sequence[str | Path | RunResult]

__all__ = ["compare", "load"]


def load(source: Source, baseline: str | None = None, metric: str | None = None) -> Comparison:
    """The runs of a results folder, or of several run folders, as a `Comparison`: groups, pairs, audit, verdicts.

    `baseline` is the name of a run (by default the recipe's first), `metric` a number of results.json.
    """
    from hf_arch.experiments.comparison import compare_runs

    return compare_runs(source, baseline, metric)


def compare(source: Source, baseline: str | None = None) -> pd.DataFrame:
    """The same as a table: one row a name, best first, with means, 95 % intervals and the baseline difference."""
    return load(source, baseline).frame()
