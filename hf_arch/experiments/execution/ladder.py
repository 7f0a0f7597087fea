"""Training a ladder: the trunks first, then what branches off them (`hf_arch.experiments.planning.ladder`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_arch.experiments.execution.registering import register_claims
from hf_arch.experiments.execution.runner import RunOptions, TrainedSet, processes_per_run, train_set
from hf_arch.experiments.planning.ladder import BRANCH
from hf_arch.experiments.planning.prepare import prepare_set
from hf_arch.recipe.recipe import RUN_FACTS, Recipe


def train_ladder(
    recipe: Recipe, results_dir: Path, options: RunOptions, own: Mapping[str, Mapping[str, Any]] | None = None
) -> TrainedSet:
    """Trains every rung; returns the set with its runs that did not complete. A branch whose trunk did not complete is
    not begun."""
    prepared = prepare_set(recipe, results_dir, processes_per_run(options), own)
    register_claims(recipe, prepared.plan.names, results_dir)
    branches = [run for run in prepared.runs if BRANCH in run.config[RUN_FACTS]]
    trunks = [run for run in prepared.runs if BRANCH not in run.config[RUN_FACTS]]
    failed = train_set(replace(prepared, runs=trunks), results_dir, options)
    without = {run.folder.name for run in failed}
    ready = [run for run in branches if Path(run.config[RUN_FACTS][BRANCH]["folder"]).name not in without]
    failed += train_set(replace(prepared, runs=ready), results_dir, options)
    return TrainedSet(prepared, failed)
