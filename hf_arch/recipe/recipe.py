"""A recipe: everything one run (or one set of runs) needs, read from YAML into typed, checked, frozen options.

Sections: `model` (a config as a dict with `architecture:`), `data` (`hf_arch.data.DataOptions`) or `probe`, `training`
(names of `transformers.TrainingArguments`, and some of ours), `evaluation` and `experiment`.
Every wrong key or value is a `ConfigError` of one line that names the field. Precedence, weakest first: the file,
`experiment.scale.<name>`, `experiment.runs.<name>`, a point of `experiment.matrix`, `key=value` overrides from the
command line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_arch.checkpoints.plugin_copies import chosen_sources
from hf_arch.core.errors import ConfigError, choice_error, unknown_key_error
from hf_arch.core.plugins import Plugin, load_plugins
from hf_arch.core.recipes import find_recipe
from hf_arch.data import DataOptions
from hf_arch.deprecations import current_names
from hf_arch.recipe.dotted import set_dotted
from hf_arch.recipe.evaluation import EvaluationOptions
from hf_arch.recipe.experiment import ExperimentOptions, experiment_section
from hf_arch.recipe.identity import column_plugins, recipe_plugins, run_hash
from hf_arch.recipe.overrides import key_advice
from hf_arch.recipe.probe import ProbeOptions, parse_probe
from hf_arch.recipe.sections import LIST_KEYS, coerce, parse_section, plain_values, require_mapping, set_values
from hf_arch.recipe.training_section import parse_training, training_fields
from hf_arch.recipe.yaml_text import parse_override, read_yaml

SECTIONS = ("model", "data", "probe", "training", "evaluation", "experiment")
# A run folder's experiment_config.json is a recipe too; what this section holds besides it is not read back.
RUN_FACTS = "run"


@dataclass(frozen=True)
class Recipe:
    """One checked recipe. `overrides` are kept apart: they win over the runs and the matrix of a set as well.

    With a `probe`, `data` says nothing, and `evaluation` has `metrics` alone, on the test rows.
    """

    model: Mapping[str, Any]
    data: DataOptions = field(default_factory=DataOptions)
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    experiment: ExperimentOptions = field(default_factory=ExperimentOptions)
    overrides: tuple[tuple[str, Any], ...] = ()
    probe: ProbeOptions | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, overrides: Iterable[tuple[str, Any]] = ()) -> Recipe:
        """A recipe from nested plain values. Raises `ConfigError` for any key or value that is not known."""
        overrides = tuple(overrides)
        merged = dict(require_mapping(values, "recipe"))
        for key, value in overrides:
            _check_empty(key, value, merged)
            merged = set_dotted(merged, key, value)
        for key in merged:
            if key not in SECTIONS:
                raise unknown_key_error("recipe", key, SECTIONS, LIST_KEYS)
        model = current_names("model", require_mapping(merged.get("model"), "model"))
        _check_model(model)
        load_plugins(model.get("plugins") or ())  # every section may name what they register
        experiment = parse_section(ExperimentOptions, experiment_section(merged.get("experiment")), "experiment")
        architecture = model.get("architecture")
        if architecture is None and not experiment.runs and not experiment.sets:
            raise ConfigError("model.architecture: is missing; write for example `architecture: llama`")
        if architecture is not None and not isinstance(architecture, str):
            raise ConfigError(f"model.architecture: expected text, got {type(architecture).__name__} {architecture!r}")
        probe = None if merged.get("probe") is None else parse_probe(ProbeOptions, merged["probe"])
        evaluation = parse_section(EvaluationOptions, merged.get("evaluation"), "evaluation")
        if probe is not None:
            _check_beside_probe(merged)
        training = parse_training(merged.get("training"))
        return cls(
            model=model,
            data=parse_section(DataOptions, merged.get("data"), "data"),
            training=training,
            evaluation=evaluation,
            experiment=experiment,
            overrides=overrides,
            probe=probe,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that YAML and JSON can hold; `Recipe.from_dict` reads them back to an equal recipe."""
        if self.probe is None:
            rows = {"data": plain_values(self.data), "evaluation": plain_values(self.evaluation)}
        else:
            metrics = plain_values(self.evaluation.metrics)
            rows = {"probe": plain_values(self.probe), **({"evaluation": {"metrics": metrics}} if metrics else {})}
        return {
            "model": dict(self.model),
            **rows,
            "training": dict(self.training),
            "experiment": plain_values(self.experiment),
        }

    def single(self, name: str, changes: Mapping[str, Any]) -> Recipe:
        """One run of this set, called `name`: nested or dotted `changes` laid over the recipe, the overrides over
        both.
        """
        values = self.to_dict()
        for key, value in changes.items():
            values = set_dotted(values, key, value)
        for key, value in self.overrides:
            values = set_dotted(values, key, value)
        experiment = self.experiment
        values["experiment"] = {
            "name": name,
            "hypothesis": experiment.hypothesis,
            "description": experiment.description,
            **({} if experiment.metric is None else {"metric": experiment.metric}),
            **({"columns": list(experiment.columns)} if experiment.columns else {}),
        }
        return Recipe.from_dict(values)

    def with_model(self, changes: Mapping[str, Any]) -> Recipe:
        """This recipe with other values in its `model` section."""
        return dataclasses.replace(self, model={**self.model, **changes})

    def with_plugins(self, paths: list[str]) -> Recipe:
        """This recipe with these plugins alone."""
        model = {key: value for key, value in self.model.items() if key != "plugins"}
        return dataclasses.replace(self, model={**model, **({"plugins": paths} if paths else {})})

    @property
    def data_key(self) -> str:
        """Equal for recipes with equal rows."""
        return json.dumps(plain_values(self.probe or self.data), sort_keys=True, default=str)

    @property
    def sequence_length(self) -> int:
        """Tokens in a row, T."""
        return (
            self.data.sequence_length if self.probe is None else self.probe.data("train", 0, examples=1).inputs.shape[1]
        )

    @property
    def longest_row(self) -> int:
        """Tokens in the longest row that the model is shown: a probe may be scored on longer rows than it learns."""
        if self.probe is None:
            return self.data.sequence_length
        return max(self.probe.data(split, 0, examples=1).inputs.shape[1] for split in ("train", "test"))

    @property
    def plugins(self) -> list[Plugin]:
        """The plugins that the run of this recipe uses, those that `HF_ARCH_PLUGINS` names among them."""
        return recipe_plugins(self.to_dict())

    @property
    def kept_plugins(self) -> list[Plugin]:
        """Those, and the plugins of its columns: what its folder keeps."""
        used = self.plugins
        return [*used, *(plugin for plugin in column_plugins(self.to_dict()) if plugin not in used)]

    def stable_hash(self, *facts: str) -> str:
        """Ten hex digits over what changes a result: model, data, training, evaluation, the numerics of the code
        (`recipe.identity`), the user's own files that the model is made of, and `facts` that the recipe only points to
        (the fingerprint of the data).

        Values equal to their defaults are left out, so that a new option renames no run that does without it.
        """
        values = self.to_dict()
        for section in ("data", "evaluation", "probe"):
            if section in values:
                values[section] = set_values(getattr(self, section))
        return run_hash(values, *facts)


def load_recipe(
    path: str | Path, overrides: Iterable[str] = (), scale: str | None = None, run: str | Path | None = None
) -> Recipe:
    """The recipe in the YAML file `path`, or the one of that name that comes with the package (`quickstart`), with
    `key=value` overrides and the changes of `experiment.scale.<scale>`. Of plugins that the `run` in that folder keeps,
    which is to go on, its own copies are taken (`hf_arch.checkpoints.plugin_copies`).

    Raises `ConfigError` of one line for a missing, empty or malformed file and for every unknown key or wrong value.
    """
    file = find_recipe(path)
    own = {} if run is None else {source.name: str(source.path) for source in chosen_sources(Path(run))}
    values = _with_plugins_beside(require_mapping(read_yaml(file), str(file)), file.parent, own)
    return read_recipe(values, overrides, scale, name=file.stem)


def _with_plugins_beside(node: Any, folder: Path, own: Mapping[str, str]) -> Any:
    """`node` with the paths under `plugins` made absolute: they count from the recipe, else from here. `own` are those
    of a run that goes on, by their names."""
    if not isinstance(node, Mapping):
        return node
    return {
        key: [_beside(path, folder, own) for path in value]
        if str(key).rsplit(".", 1)[-1] == "plugins" and isinstance(value, list)
        else _with_plugins_beside(value, folder, own)
        for key, value in node.items()
    }


def _beside(path: Any, folder: Path, own: Mapping[str, str]) -> Any:
    if isinstance(path, str):
        if (kept := own.get(Path(path).name)) is not None:
            return kept
        for place in (folder / Path(path).expanduser(), Path(path).expanduser()):
            if place.is_file():
                return str(place.absolute())
    return path


def read_recipe(
    values: Mapping[str, Any], overrides: Iterable[str] = (), scale: str | None = None, *, name: str = "experiment"
) -> Recipe:
    """The same from plain values; `name` is the experiment's where it gives none itself."""
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: expected a list of texts, got the text {overrides!r}; write [{overrides!r}]")
    parsed = [parse_override(text) for text in overrides]
    for key, _ in parsed:
        if (section := key.split(".")[0]) not in SECTIONS:
            error = choice_error(f"override {key}: section", section, SECTIONS)
            typed = {"data": DataOptions, "evaluation": EvaluationOptions, "experiment": ExperimentOptions}
            known = {name: [entry.name for entry in dataclasses.fields(cls)] for name, cls in typed.items()}
            raise error if "." in key else error.advised(key_advice(key, {"training": training_fields(), **known}))
    values = {key: value for key, value in values.items() if key != RUN_FACTS}
    experiment = experiment_section(values.get("experiment"))
    values["experiment"] = {**experiment, "name": experiment.get("name") or name}
    if scale is not None and not experiment.get("sets"):  # the sets have scales of their own
        scales = require_mapping(experiment.get("scale"), "experiment.scale")
        if not scales:
            raise ConfigError(f"--scale: {scale!r} is not known; the recipe declares no experiment.scale")
        if scale not in scales:
            raise choice_error("--scale", scale, scales)
        changes = dict(require_mapping(scales[scale], f"experiment.scale.{scale}"))
        if "experiment" in changes:
            changes["experiment"] = experiment_section(changes["experiment"])
        for key, value in changes.items():
            values = set_dotted(values, key, value)
    return Recipe.from_dict(values, overrides=parsed)


def _check_empty(key: str, value: Any, values: Mapping[str, Any]) -> None:
    """Raises ConfigError for an override that empties a section: mappings are merged, so it would change nothing."""
    there: Any = values
    for part in key.split("."):
        there = there.get(part) if isinstance(there, Mapping) else None
    if value == {} and isinstance(value, Mapping) and there:
        where = " (or --run NAME for one of them)" if key == "experiment.runs" else ""
        raise ConfigError(
            f"override {key}: {{}} would change nothing, since mappings are merged; allowed: the keys in it, "
            f"{', '.join(map(str, there))}{where}",
            field=key,
            value=value,
        )


def _check_model(node: Any, where: str = "model") -> None:
    """Raises `ConfigError` for what no config can hold: keys that are not text, numbers that are not finite; and for
    `plugins` that are no paths."""
    if isinstance(node, Mapping):
        for key, value in require_mapping(node, where).items():
            if key == "plugins" and value is not None:
                coerce(value, list[str], f"{where}.plugins")
            _check_model(value, f"{where}.{key}")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            _check_model(value, f"{where}[{index}]")
    elif isinstance(node, float) and not math.isfinite(node):
        raise ConfigError(f"{where}: expected a finite number, got {node}")


def _check_beside_probe(values: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for what a recipe with a `probe` says of text."""
    if values.get("data"):
        raise ConfigError("data: a recipe with a `probe` section generates its rows; leave 'data' out")
    for key in values.get("evaluation") or {}:
        if key != "metrics":
            raise ConfigError(
                f"evaluation.{key}: is about text, and a recipe with a `probe` section is scored on all its test rows; "
                "allowed: metrics"
            )
