"""One set from its recipe to trained runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_arch.experiments.execution.ladder import train_ladder
from hf_arch.experiments.execution.rates import train_rates
from hf_arch.experiments.execution.registering import register_claims
from hf_arch.experiments.execution.runner import RunOptions, TrainedSet, processes_per_run, train_set
from hf_arch.experiments.execution.tune import train_tuned
from hf_arch.experiments.planning.plan import Planner
from hf_arch.experiments.planning.prepare import prepare_set
from hf_arch.experiments.planning.seeds import check_auto_seeds, with_seed_plan
from hf_arch.recipe.recipe import Recipe
from hf_arch.recipe.seeds import AutoSeeds

Undecided = Callable[[Sequence[Path]], list[str]]
"""Given the folders of runs, the claims about them that their numbers do not decide."""


def run_set(
    recipe: Recipe,
    results_dir: Path,
    options: RunOptions | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    undecided: Undecided | None = None,
    planner: Planner | None = None,
) -> TrainedSet:
    """Trains what is not finished of one set, by the engine of the options; its claims are written into the results
    folder before the first run starts. `facts` are what the runs of each name in `experiment.runs` record of
    themselves. `undecided` says when seeds are enough, for `experiment.seeds: auto`. `planner` is that of the recipe,
    where one was made to check it.

    Raises `ConfigError` for anything wrong in any run, before any of them starts.
    """
    options = options or RunOptions()
    if isinstance(recipe.experiment.seeds, AutoSeeds):
        check_auto_seeds(recipe)
        facts = with_seed_plan(recipe, facts)
    if recipe.experiment.tune is not None or recipe.experiment.learning_rates is not None:
        choose = train_rates if recipe.experiment.tune is None else train_tuned
        found = choose(recipe, results_dir, options, facts)
        if isinstance(found, TrainedSet):
            return found
        recipe, facts = found
    if isinstance(recipe.experiment.seeds, AutoSeeds):
        assert undecided is not None
        return _train_in_turn(recipe, recipe.experiment.seeds, results_dir, options, facts, undecided)
    if recipe.experiment.ladder is not None:
        return train_ladder(recipe, results_dir, options, facts)
    prepared = prepare_set(recipe, results_dir, processes_per_run(options), facts, planner=planner)
    register_claims(recipe, prepared.plan.names, results_dir)
    return TrainedSet(prepared, train_set(prepared, results_dir, options))


def _train_in_turn(
    recipe: Recipe,
    plan: AutoSeeds,
    results_dir: Path,
    options: RunOptions,
    facts: Mapping[str, Mapping[str, Any]] | None,
    undecided: Undecided,
) -> TrainedSet:
    """Trains the least number of seeds, then one more at a time while a claim is undecided. What was decided after a
    number of seeds depends on their results alone, so a set that was cut off goes the same way again. The runs of all
    seeds are planned at once."""
    whole = replace(recipe, experiment=replace(recipe.experiment, seeds=plan.first(plan.most)))
    every = prepare_set(whole, results_dir, processes_per_run(options), facts)
    register_claims(recipe, every.plan.names, results_dir)
    for count in plan.looks:
        prepared = every.of_seeds(plan.first(count))
        failed = train_set(prepared, results_dir, options)
        if failed:
            break
        left = undecided([run.folder for run in prepared.runs])
        said = f"undecided: {'; '.join(left)}" if left else "every claim is decided"
        print(f"seeds: {count} of at most {plan.most}: {said}", file=sys.stderr, flush=True)
        if not left:
            break
    return TrainedSet(prepared, failed)
