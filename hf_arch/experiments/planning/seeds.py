"""Checks and facts of a set whose seeds are added while a claim is undecided (`experiment.seeds: auto`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.experiments.planning.plan import Planner
from hf_arch.recipe.recipe import Recipe
from hf_arch.recipe.seeds import AutoSeeds
from hf_arch.runs.claims import claim_matches


def check_auto_seeds(recipe: Recipe) -> None:
    """Raises ConfigError where no claim of the hypothesis is about the runs of the set, so that nothing could ever say
    that the seeds are enough."""
    planned = Planner(recipe).unmatched().runs
    names = {run.name for run in planned} | {str(run.recipe.model.get("architecture")) for run in planned}
    if not any(match["first"] in names for match in claim_matches(recipe.experiment.hypothesis)):
        raise ConfigError(
            "experiment.seeds: auto needs a claim to decide, such as 'A better than B' between runs of the set; "
            f"experiment.hypothesis has none: {' '.join(recipe.experiment.hypothesis.split())!r}"
        )


def with_seed_plan(recipe: Recipe, facts: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """The facts that each run records of itself, with how far seeds may be added."""
    plan = recipe.experiment.seeds
    assert isinstance(plan, AutoSeeds)
    found = {name: dict(values) for name, values in (facts or {}).items()}
    for name in recipe.experiment.runs or [recipe.experiment.name]:
        found[name] = {**found.get(name, {}), "sequential": plan.to_dict()}
    return found
