"""Training a set whose learning rates are chosen first (`hf_arch.experiments.planning.rates`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_arch.experiments.execution.registering import register_claims
from hf_arch.experiments.execution.runner import RunOptions, TrainedSet, processes_per_run, train_set
from hf_arch.experiments.planning.rates import Choice, RateSweep, Selection
from hf_arch.recipe.recipe import Recipe


def train_rates(
    recipe: Recipe, results_dir: Path, options: RunOptions, own: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Recipe, dict[str, dict[str, Any]]] | TrainedSet:
    """Trains the sweep, and extends it once where a best rate lies at its end; the set at the best rates, and what its
    runs record.

    `own` are facts that runs record of themselves, by name. A rate at which training failed is no failure of the set,
    as long as each run has another; else the sweep is returned with what failed in it.
    """
    processes = processes_per_run(options)
    sweep = RateSweep(recipe, results_dir, processes)
    prepared = sweep.prepare()
    register_claims(recipe, list(recipe.experiment.runs) or [recipe.experiment.name], results_dir)
    failed = train_set(prepared, sweep.folder, options)
    choices = sweep.choices(prepared)
    at_end = ", ".join(name for name, choice in choices.items() if choice.at_edge)
    if set(choices) == set(sweep.names) and sweep.extend(choices):
        print(
            f"learning rates: the best of {at_end} lies at the end of the grid, which is extended once "
            f"for all runs, by {', '.join(f'{rate:g}' for rate in sweep.extended)}",
            file=sys.stderr,
            flush=True,
        )
        prepared = sweep.prepare()
        failed = train_set(prepared, sweep.folder, options)
        choices = sweep.choices(prepared)
    return after_selection(sweep, choices, TrainedSet(prepared, failed), own)


def after_selection(
    selection: Selection,
    choices: Mapping[str, Choice],
    trained: TrainedSet,
    own: Mapping[str, Mapping[str, Any]] | None,
) -> tuple[Recipe, dict[str, dict[str, Any]]] | TrainedSet:
    """Says which rate each run has; the set that is compared, or what was `trained` last, where a run has none."""
    if missing := [name for name in selection.names if name not in choices]:
        print(f"learning rates: no rate of {', '.join(missing)} completed", file=sys.stderr, flush=True)
        return trained
    for name, choice in choices.items():
        print(f"learning rates: {name}: {choice.words}", file=sys.stderr, flush=True)
    return selection.compared(choices, own)
