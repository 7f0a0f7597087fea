"""Experiments: recipes, plans, matched runs, and what is made of their results. For notebooks:

    import hf_arch.experiments as experiments

    heads = experiments.run("recipes/experiments/heads.yaml", scale="cpu")   # a Comparison
    experiments.show(heads)                        # audit, table, statements
    heads.frame()                                  # a pandas DataFrame, one row a name
    experiments.load("results/heads").verdicts     # later, from the folder
    experiments.compare(["results/heads", "results/depth"])

Importing the package loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from hf_arch.analysis.comparison import Comparison
    from hf_arch.runs.record import RunRecord

    Source = str | Path | Sequence[str | Path | RunRecord]

__all__ = ["compare", "load", "run", "show", "write_report"]


def run(
    recipe: str | Path | Mapping[str, Any],
    results_dir: str | Path | None = None,
    *,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    workers: int = 1,
) -> Comparison:
    """Trains what a recipe declares, each run in its own process, and compares the completed runs.

    Args:
        recipe: a YAML file, the name of one that comes with the package, or the same as nested plain values.
        results_dir: folder of the set, by default `results/<name>`. Finished runs in it are kept.
        scale: a size that the recipe declares, such as `cpu`.
        overrides: texts such as `training.max_steps=100`.
        workers: runs at a time.

    Raises:
        ConfigError: something in the recipe is wrong; nothing has been trained then.

    Runs that failed are named in the comparison's audit, and enter none of its numbers.
    """
    from hf_arch.core.errors import ConfigError
    from hf_arch.experiments.execution.runner import RunOptions
    from hf_arch.experiments.planning.prepare import set_folder
    from hf_arch.recipe.recipe import load_recipe, read_recipe
    from hf_arch.report.conclude import run_and_conclude

    if isinstance(recipe, Mapping):
        loaded = read_recipe(recipe, overrides, scale)
    elif not isinstance(recipe, (str, Path)):
        raise ConfigError(f"recipe: expected a YAML file, its name or a mapping, got {type(recipe).__name__}")
    else:
        loaded = load_recipe(recipe, overrides, scale)
    folder = Path(results_dir) if results_dir is not None else set_folder(loaded)
    _trained, comparison = run_and_conclude(loaded, folder, RunOptions(workers=workers))
    return comparison or load(folder)


def load(source: Source, baseline: str | None = None, metric: str | None = None) -> Comparison:
    """The runs of a results folder, or of several run folders, as a `Comparison`: groups, pairs, audit, verdicts.

    `baseline` is the name of a run (by default the recipe's first), `metric` a number of results.json.
    """
    from hf_arch.analysis.compare import compare_runs

    return compare_runs(source, baseline, metric)


def compare(source: Source, baseline: str | None = None) -> pd.DataFrame:
    """The same as a table: one row a name, best first, with means, 95 % intervals and the baseline difference."""
    return load(source, baseline).frame()


def show(comparison: Comparison | Source) -> None:
    """Prints a comparison, or that of a results folder: audit, table and statements, to any width of terminal."""
    from hf_arch.analysis.comparison import Comparison
    from hf_arch.report.table import print_comparison

    print_comparison(comparison if isinstance(comparison, Comparison) else load(comparison))


def write_report(results_dir: str | Path, comparison: Comparison | None = None) -> Path:
    """Writes `report.html` and its figures into a results folder, about `comparison` or all runs there; its path."""
    from hf_arch.report.page import write_report

    return write_report(results_dir, comparison=comparison)
