"""From one recipe to its runs: named runs x points of the matrix x seeds, checked, and made equal where it asks so.

A point of the matrix whose values do not go together (12 heads at width 320) is skipped, with the reason; anything
wrong in a run that the recipe names is an error.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.experiments.build import build_config
from hf_arch.experiments.match import Matched, Sizer, match_model, model_size
from hf_arch.experiments.recipe import MatchOptions, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokenizers = Mapping[str, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a set: its name (without the seed), the recipe that trains it, and what matching changed in it.

    `declared` is its key in `experiment.runs`, `point` its place in the matrix.
    """

    name: str
    recipe: Recipe
    declared: str
    point: str = ""
    matched: Matched | None = None


@dataclass(frozen=True)
class Skipped:
    """A point of the matrix that cannot be run."""

    name: str
    declared: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The runs of a set in the order of the file, and what of its matrix cannot be."""

    runs: list[PlannedRun]
    skipped: list[Skipped]

    @property
    def names(self) -> list[str]:
        """The names of the runs, each once."""
        return list(dict.fromkeys(run.name for run in self.runs))


def plan_runs(recipe: Recipe, tokenizers: Tokenizers | None = None, *, match: bool = True) -> Plan:
    """The runs that a recipe declares; a recipe without a set is one run.

    Args:
        recipe: the whole set.
        tokenizers: by `Recipe.data_key`; without them the vocabulary counts as the recipe says.
        match: whether to make the runs equal where `experiment.match` asks for it.

    Raises:
        ConfigError: one line that names the run whose changes are wrong, or that cannot be matched.
    """
    if recipe.experiment.sets:
        raise ConfigError("experiment.sets: names other recipes; `hf-arch run` runs them, each as a set of its own")
    points = _Points(recipe, tokenizers or {})
    points.lay_out()
    if match and recipe.experiment.match is not None:
        points.match(recipe.experiment.match)
    return points.plan()


class _Points:
    """The runs of a set while it is planned: what is left of the matrix, and what had to be skipped."""

    def __init__(self, recipe: Recipe, tokenizers: Tokenizers) -> None:
        self.recipe = recipe
        self.experiment = recipe.experiment
        self.tokenizers = tokenizers
        self.runs: list[PlannedRun] = []
        self.skipped: dict[str, Skipped] = {}

    def lay_out(self) -> None:
        """Every run with its own recipe; its model is checked."""
        experiment = self.experiment
        varied = {*experiment.matrix, *(["training.seed"] if experiment.seeds else [])}
        for key, _ in self.recipe.overrides:
            if key in varied:
                home = "experiment.seeds" if key == "training.seed" else f"experiment.matrix.{key}"
                raise ConfigError(f"override {key}: the recipe varies it over {home}; override that instead")
        seeds: tuple[int | None, ...] = experiment.seeds or (None,)
        for declared, changes in (experiment.runs or {experiment.name: {}}).items():
            for suffix, point in _matrix_points(experiment.matrix):
                name = _file_name(declared + suffix)
                for seed in seeds:
                    own = {**(changes or {}), **point, **({} if seed is None else {"training.seed": seed})}
                    try:
                        single = self.recipe.single(name, own)
                        build_config(single, self.tokenizers.get(single.data_key))
                    except ConfigError as error:
                        self._leave_out(name, declared, error)
                        break
                    self.runs.append(PlannedRun(name, single, declared, suffix))
        if experiment.match is not None and self.runs:
            self._check_match(experiment.match)

    def _check_match(self, options: MatchOptions) -> None:
        """Raises `ConfigError` for a reference or a field to vary that does not exist."""
        references = self.experiment.runs or list(dict.fromkeys(run.name for run in self.runs))
        if options.reference is not None and options.reference not in references:
            raise choice_error("experiment.match.reference", options.reference, references)
        if options.vary == "auto":
            return
        for run in self.runs:
            try:
                build_config(run.recipe.with_model({options.vary: 64}), self.tokenizers.get(run.recipe.data_key))
            except ConfigError as error:  # only the name is judged here: 64 need not go with the other values
                if "unknown key" in str(error):
                    raise ConfigError(f"experiment.match.vary: {error}") from error

    def match(self, options: MatchOptions) -> None:
        """Makes the runs of each point equal to the reference at that point; without named runs, all points to one."""
        by_point = bool(self.experiment.runs)
        groups: dict[str, dict[str, PlannedRun]] = {}
        for run in self.runs:
            group = groups.setdefault(run.point if by_point else "", {})
            group.setdefault(run.declared if by_point else run.name, run)
        reference = options.reference or (next(iter(self.experiment.runs)) if by_point else self.runs[0].name)
        matched: dict[str, Matched] = {}
        known: dict[str, Matched] = {}
        for group in groups.values():
            if reference not in group:
                for key, run in group.items():
                    reason = ConfigError(f"experiment.match: the reference {reference!r} cannot be run at this point")
                    self._leave_out(run.name, key if by_point else run.declared, reason)
                continue
            target = self._sizer(group[reference], options.by)({})
            for key, run in group.items():
                facts = [dict(run.recipe.model), run.recipe.data_key, target, key == reference]
                fingerprint = json.dumps(facts, sort_keys=True, default=str)
                try:
                    if fingerprint not in known:
                        known[fingerprint] = (
                            Matched({}, target, 0.0, options.by)
                            if key == reference
                            else match_model(self._sizer(run, options.by), target, options, run.name, reference)
                        )
                    matched[run.name] = known[fingerprint]
                except ConfigError as error:
                    self._leave_out(run.name, run.declared, error)
        self.runs = [
            replace(run, recipe=run.recipe.with_model(matched[run.name].changes), matched=matched[run.name])
            for run in self.runs
            if run.name in matched
        ]

    def plan(self) -> Plan:
        """What came of it. Raises `ConfigError` where nothing is left of a run."""
        left = {run.declared for run in self.runs}
        for declared in self.experiment.runs or {self.experiment.name: {}}:
            if declared not in left:
                first = next(skipped for skipped in self.skipped.values() if skipped.declared == declared)
                raise ConfigError(f"experiment.matrix: no point of it can be run; {first.name}: {first.reason}")
        return Plan(self.runs, list(self.skipped.values()))

    def _leave_out(self, name: str, declared: str, error: ConfigError) -> None:
        """Skips a point of the matrix; where there is no matrix, the error is the user's."""
        if not self.experiment.matrix:
            if str(error).startswith("experiment.match") or not self.experiment.runs:
                raise error
            raise ConfigError(f"experiment.runs.{declared}: {error}") from error
        self.skipped.setdefault(name, Skipped(name, declared, str(error)))

    def _sizer(self, run: PlannedRun, by: str) -> Sizer:
        tokenizer = self.tokenizers.get(run.recipe.data_key)
        length = run.recipe.sequence_length
        return lambda changes: model_size(build_config(run.recipe.with_model(changes), tokenizer), by, length)


def _matrix_points(matrix: Mapping[str, list[Any]]) -> list[tuple[str, dict[str, Any]]]:
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
