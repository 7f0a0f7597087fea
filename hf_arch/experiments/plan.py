"""From one recipe to its runs: named runs x points of the matrix x seeds, each a complete recipe of its own."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

from hf_arch.errors import ConfigError
from hf_arch.experiments.recipe import Recipe


@dataclass(frozen=True)
class PlannedRun:
    """One run of a set: its name (without the seed) and the recipe that trains it."""

    name: str
    recipe: Recipe


def plan_runs(recipe: Recipe) -> list[PlannedRun]:
    """The runs that a recipe declares, in the order of the file; a recipe without a set is one run.

    Raises `ConfigError` naming the run whose changes are wrong.
    """
    experiment = recipe.experiment
    varied = {*experiment.matrix, *(["training.seed"] if experiment.seeds else [])}
    for key, _ in recipe.overrides:
        if key in varied:
            home = "experiment.seeds" if key == "training.seed" else f"experiment.matrix.{key}"
            raise ConfigError(f"override {key}: the recipe varies it over {home}; override that instead")
    runs = experiment.runs or {experiment.name: {}}
    seeds: tuple[int | None, ...] = experiment.seeds or (None,)
    planned = []
    for name, changes in runs.items():
        for suffix, point in _matrix_points(experiment.matrix):
            for seed in seeds:
                run_name = _file_name(name + suffix)
                own = {**(changes or {}), **point, **({} if seed is None else {"training.seed": seed})}
                try:
                    single = recipe.single(run_name, own)
                except ConfigError as error:
                    raise ConfigError(f"experiment.runs.{name}: {error}") from error
                planned.append(PlannedRun(run_name, single))
    return planned


def _matrix_points(matrix: dict[str, list[Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(suffix of the name, changes) of every combination; one empty point without a matrix."""
    for key, values in matrix.items():
        if not values:
            raise ConfigError(f"experiment.matrix.{key}: expected at least one value")
    points = itertools.product(*matrix.values())
    return [
        ("".join(f"-{key.rsplit('.', 1)[-1]}-{value}" for key, value in zip(matrix, point, strict=True)),
         dict(zip(matrix, point, strict=True)))
        for point in points
    ]  # fmt: skip


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", name).strip("_") or "run"
