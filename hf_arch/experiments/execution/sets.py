"""One set from its recipe to trained runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_arch.experiments.execution.ladder import train_ladder
from hf_arch.experiments.execution.rates import train_with_rates
from hf_arch.experiments.execution.registering import register_claims
from hf_arch.experiments.execution.runner import RunOptions, processes_per_run, train_set
from hf_arch.experiments.execution.tune import train_tuned
from hf_arch.experiments.planning.prepare import PreparedSet, ReadyRun, prepare_set
from hf_arch.recipe.recipe import Recipe


@dataclass(frozen=True)
class TrainedSet:
    """A prepared set whose runs have been tried, and those of them that did not complete."""

    prepared: PreparedSet
    failed: list[ReadyRun]


def run_set(
    recipe: Recipe,
    results_dir: Path,
    options: RunOptions | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> TrainedSet:
    """Trains what is not finished of one set, by the engine of the options; its claims are written into the results
    folder before the first run starts. `facts` are what the runs of each name in
    `experiment.runs` record of themselves.

    Raises `ConfigError` for anything wrong in any run, before any of them starts.
    """
    options = options or RunOptions()
    if recipe.experiment.tune is not None:
        return TrainedSet(*train_tuned(recipe, results_dir, options))
    if recipe.experiment.learning_rates is not None:
        return TrainedSet(*train_with_rates(recipe, results_dir, options, facts))
    if recipe.experiment.ladder is not None:
        return TrainedSet(*train_ladder(recipe, results_dir, options, facts))
    prepared = prepare_set(recipe, results_dir, processes_per_run(options), facts)
    register_claims(recipe, prepared.plan.names, results_dir)
    return TrainedSet(prepared, train_set(prepared, results_dir, options))
