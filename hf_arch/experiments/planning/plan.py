"""From one recipe to its runs: named runs x points of the matrix x seeds, checked, and made equal where it asks so.

    planner = Planner(recipe)          # every run parsed and its model checked, before any data is prepared
    plan = planner.plan(tokenizers)    # the same runs with the vocabulary of their data, matched

A point of the matrix whose values do not go together (12 heads at width 320) is skipped, with the reason; anything
wrong in a run that the recipe names is an error. Each run is parsed once, and each distinct model built once, however
many seeds share it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_arch.core.errors import ConfigError, UnknownKeyError, choice_error
from hf_arch.experiments.planning.match import Matched, MatchError, Sizer, match_model, model_size
from hf_arch.recipe.build import build_config
from hf_arch.recipe.match import MatchOptions
from hf_arch.recipe.metrics import metric_entries
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.claim_checks import check_claims
from hf_arch.runs.numbers import Reader
from hf_arch.runs.record import numbers_for

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    Tokenizers = Mapping[str, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a set: its name (without the seed), the recipe that trains it, the config of its model, and what
    matching changed in it. Seeds share a config; it is not to be changed.

    `declared` is its key in `experiment.runs`, `point` its place in the matrix.
    """

    name: str
    recipe: Recipe
    config: PreTrainedConfig
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
    """The runs of a set in the order of the file, and the points of its matrix that are skipped."""

    runs: list[PlannedRun]
    skipped: list[Skipped]

    @property
    def names(self) -> list[str]:
        """The names of the runs, each once."""
        return list(dict.fromkeys(run.name for run in self.runs))


def plan_runs(recipe: Recipe, *, match: bool = True) -> Plan:
    """The runs that a recipe declares; a recipe without a set is one run.

    Args:
        recipe: the whole set.
        match: whether to make the runs equal where `experiment.match` asks for it.

    Raises:
        ConfigError: one line that names the run whose changes are wrong, or that cannot be matched.
    """
    planner = Planner(recipe)
    return planner.plan() if match else planner.unmatched()


class Planner:
    """The runs of a set while it is planned. Raises `ConfigError` as `plan_runs` does."""

    def __init__(self, recipe: Recipe) -> None:
        if recipe.experiment.sets:
            raise ConfigError("experiment.sets: names other recipes; `hf-arch run` runs them, each as a set of its own")
        self.recipe = recipe
        self.experiment = recipe.experiment
        self.tokenizers: Tokenizers = {}
        self._configs: dict[str, PreTrainedConfig] = {}
        self._skipped: dict[str, Skipped] = {}
        self._runs = self._lay_out()
        self._check_metric()
        architectures = {str(run.recipe.model.get("architecture")) for run in self._runs}
        check_claims(self.experiment.hypothesis, {*(run.name for run in self._runs), *architectures})
        if self.experiment.match is not None and self._runs:
            self._check_match(self.experiment.match)

    def _check_metric(self) -> None:
        """Claims are judged by a number that every run will have."""
        metric = self.experiment.metric
        for run in self._runs if metric is not None else ():
            known = {number.key for number in numbers_for(Reader.ROWS)} | set(
                metric_entries(run.recipe.evaluation.metrics)
            )
            if metric not in known:
                raise choice_error("experiment.metric", metric, known)

    def unmatched(self) -> Plan:
        """The runs as they are declared."""
        return self._result(self._runs)

    def plan(self, tokenizers: Tokenizers | None = None, *, match: bool = True) -> Plan:
        """The runs with the vocabulary that their data has, made equal where the recipe asks for it."""
        runs = self._runs
        if tokenizers:
            self.tokenizers = tokenizers
            runs = self._with_vocabulary(runs)
        if match and self.experiment.match is not None:
            runs = self._matched(runs, self.experiment.match)
        return self._result(runs)

    def _lay_out(self) -> list[PlannedRun]:
        """Every run with its own recipe and config."""
        experiment = self.experiment
        varied = {*experiment.matrix, *(["training.seed"] if experiment.seeds else [])}
        for key, _ in self.recipe.overrides:
            if key in varied:
                home = "experiment.seeds" if key == "training.seed" else f"experiment.matrix.{key}"
                raise ConfigError(f"override {key}: the recipe varies it over {home}; override that instead")
        runs = []
        taken: dict[str, str] = {}
        seeds: tuple[int | None, ...] = experiment.first_seeds or (None,)
        for declared, changes in (experiment.runs or {experiment.name: {}}).items():
            for suffix, point in _matrix_points(experiment.matrix):
                name = _file_name(declared + suffix)
                if name in taken:
                    raise ConfigError(
                        f"experiment: {taken[name]!r} and {declared + suffix!r} would both be called {name!r}; name "
                        "the values of the matrix as `{name: short, value: ...}`, and runs in letters, digits, . + -"
                    )
                taken[name] = declared + suffix
                for seed in seeds:
                    own = {**(changes or {}), **point, **({} if seed is None else {"training.seed": seed})}
                    try:
                        single = self.recipe.single(name, own)
                        runs.append(PlannedRun(name, single, self._config(single), declared, suffix))
                    except ConfigError as error:
                        self._leave_out(name, declared, error)
                        break
        return runs

    def _config(self, recipe: Recipe, changes: Mapping[str, Any] | None = None) -> PreTrainedConfig:
        """The config of a recipe with `changes` to its model: built once for all recipes that agree in it."""
        tokenizer = self.tokenizers.get(recipe.data_key)
        changed = recipe.with_model(changes) if changes else recipe
        key = json.dumps([dict(changed.model), recipe.data_key, tokenizer is not None], sort_keys=True, default=repr)
        if key not in self._configs:
            self._configs[key] = build_config(changed, tokenizer)
        return self._configs[key]

    def _with_vocabulary(self, runs: list[PlannedRun]) -> list[PlannedRun]:
        kept = []
        for run in runs:
            try:
                kept.append(replace(run, config=self._config(run.recipe)))
            except ConfigError as error:
                self._leave_out(run.name, run.declared, error)
        return kept

    def _check_match(self, options: MatchOptions) -> None:
        """Raises `ConfigError` for a reference or a field to vary that does not exist."""
        references = self.experiment.runs or list(dict.fromkeys(run.name for run in self._runs))
        if options.reference is not None and options.reference not in references:
            raise choice_error("experiment.match.reference", options.reference, references)
        for name in options.free:
            if name not in references:
                raise choice_error("experiment.match.free", name, references)
        if options.vary == "auto":
            return
        for run in self._runs:
            try:
                self._config(run.recipe, {options.vary: 64})
            except UnknownKeyError as error:
                raise error.within("experiment.match.vary", ": ") from error
            except ConfigError:
                continue  # only the name is judged here: 64 need not go with the other values

    def _matched(self, runs: list[PlannedRun], options: MatchOptions) -> list[PlannedRun]:
        """The runs of each point made equal to the reference at that point; without named runs, all points to one."""
        by_point = bool(self.experiment.runs)
        groups: dict[str, dict[str, PlannedRun]] = {}
        for run in runs:
            group = groups.setdefault(run.point if by_point else "", {})
            group.setdefault(run.declared if by_point else run.name, run)
        reference = options.reference or (next(iter(self.experiment.runs)) if by_point else runs[0].name)
        matched: dict[str, Matched] = {}
        known: dict[str, Matched] = {}
        for group in groups.values():
            if reference not in group:
                for key, run in group.items():
                    reason = MatchError(f"experiment.match: the reference {reference!r} cannot be run at this point")
                    self._leave_out(run.name, key if by_point else run.declared, reason)
                continue
            target = self._sizer(group[reference], options.by)({})
            for key, run in group.items():
                if key in options.free:
                    size = self._sizer(run, options.by)({})
                    matched[run.name] = Matched({}, size, size / target - 1, options.by)
                    continue
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
        return [self._changed(run, matched[run.name]) for run in runs if run.name in matched]

    def _changed(self, run: PlannedRun, matched: Matched) -> PlannedRun:
        config = self._config(run.recipe, matched.changes)
        if matched.changes:
            matched = replace(matched, width=getattr(self._config(run.recipe, {}), "hidden_size", None))
        return replace(run, recipe=run.recipe.with_model(matched.changes), config=config, matched=matched)

    def _result(self, runs: list[PlannedRun]) -> Plan:
        """The plan of these runs. Raises `ConfigError` where nothing is left of a declared run."""
        left = {run.declared for run in runs}
        for declared in self.experiment.runs or {self.experiment.name: {}}:
            if declared not in left:
                first = next(skipped for skipped in self._skipped.values() if skipped.declared == declared)
                raise ConfigError(f"experiment.matrix: no point of it can be run; {first.name}: {first.reason}")
        return Plan(runs, list(self._skipped.values()))

    def _leave_out(self, name: str, declared: str, error: ConfigError) -> None:
        """Skips a point of the matrix; where there is no matrix, the error is the user's."""
        if not self.experiment.matrix:
            if isinstance(error, MatchError) or not self.experiment.runs:
                raise error
            raise error.within(f"experiment.runs.{declared}", ": ") from error
        self._skipped.setdefault(name, Skipped(name, declared, str(error)))

    def _sizer(self, run: PlannedRun, by: str) -> Sizer:
        length = run.recipe.sequence_length
        return lambda changes: model_size(self._config(run.recipe, changes), by, length)


def _matrix_points(matrix: Mapping[str, list[Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(suffix of the name, changes) of every combination; one empty point without a matrix."""
    axes = [[(key, *_named(key, entry)) for entry in values] for key, values in matrix.items()]
    for key, axis in zip(matrix, axes, strict=True):
        if not axis:
            raise ConfigError(f"experiment.matrix.{key}: expected at least one value")
    return [
        ("".join(f"-{name}" for _key, name, _value in point), {key: value for key, _name, value in point})
        for point in itertools.product(*axes)
    ]


def _named(key: str, entry: Any) -> tuple[str, Any]:
    """(name, value) of one entry of a matrix: `{name: short, value: ...}`, or a value named after its key."""
    if not (isinstance(entry, Mapping) and entry.keys() == {"name", "value"}):
        return f"{key.rsplit('.', 1)[-1]}-{entry}", entry
    name = entry["name"]
    if not isinstance(name, str) or not re.search(r"[A-Za-z0-9]", name):
        raise ConfigError(f"experiment.matrix.{key}: name: expected text with a letter or digit, got {name!r}")
    return name, entry["value"]


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", name).strip("_") or "run"
