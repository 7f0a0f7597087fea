"""What there is to choose from, as rows for `hf-arch list --components`, and the reports behind `hf-arch info`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hf_arch
from hf_arch.api import config_options
from hf_arch.core import registry
from hf_arch.core.errors import ConfigError, describe_choices
from hf_arch.core.recipes import is_recipe_name
from hf_arch.recipe.overrides import config_overrides
from hf_arch.recipe.recipe import SECTIONS

KINDS = (
    registry.MIXERS,
    registry.FFNS,
    registry.STREAMS,
    registry.SITES,
    registry.EMBEDDINGS,
    registry.DEPTHS,
    registry.LOSSES,
    registry.PARAMETRIZATIONS,
    registry.NORMS,
    registry.POSITIONS,
    registry.ACTIVATIONS,
    registry.OPTIMIZERS,
    registry.SCHEDULES,
    registry.INITS,
    registry.METRICS,
    registry.COLUMNS,
)


def component_rows() -> list[dict[str, Any]]:
    """Kind, name, first line of the docstring, and options with their defaults, of every registered component."""
    import hf_arch.optimizers.choose
    import hf_arch.schedules.choose

    hf_arch.list_architectures()  # loads what registers itself
    registry.load_environment_plugins()
    return [
        {"kind": kind.kind, "name": name, "summary": _first_line(entry), "options": _options(entry)}
        for kind in KINDS
        for name, entry in kind.items()
    ]


def corpus_rows() -> list[dict[str, str]]:
    """Name and first line of every registered corpus."""
    import hf_arch.data.corpora  # noqa: F401 (registers them)

    registry.load_environment_plugins()
    return [{"name": name, "summary": _first_line(entry)} for name, entry in registry.CORPORA.items()]


def probe_rows() -> list[dict[str, str]]:
    """Name, question and source of every registered probe."""
    from hf_arch.data.probes import PROBES

    registry.load_environment_plugins()
    return [{"name": name, "question": probe.question} for name, probe in PROBES.items()]


def key_rows() -> list[dict[str, Any]]:
    """Name, type and default of everything that a recipe may say but for its model."""
    from hf_arch.cli import recipe_keys

    return recipe_keys.key_rows()


def task_rows() -> list[dict[str, str]]:
    """Name of every task of `hf-arch eval` whose rows are on this machine, and where they are from."""
    from hf_arch.evaluation import offline
    from hf_arch.evaluation.suites import OUR_TASKS, SUITES

    suites = [{"name": name, "rows": ", ".join(members)} for name, members in SUITES.items()]
    own = [{"name": path.stem, "rows": "made by hf_arch"} for path in sorted(OUR_TASKS.glob("*.yaml"))]
    wheel = [{"name": name, "rows": offline.rows_origin(name)} for name in offline.local_tasks()]
    return [{"name": "perplexity", "rows": "held-out text of the run, or --text"}, *suites, *own, *wheel]


def option_rows(target: str) -> list[dict[str, Any]]:
    """Every key of an architecture's config, with its default and the part that reads it."""
    require_architecture(target, "not an architecture")
    return config_options(target)


def model_reports(target: str, overrides: Sequence[str], seq_len: int | None) -> list[dict[str, Any]]:
    """Reports on an architecture's defaults, on every run of a recipe, or on a saved model.

    `overrides` are fields of the config, for a recipe dotted keys of the recipe. Raises `ConfigError` for what is
    none of the three, and for wrong options.
    """
    from hf_arch.runs.model_report import model_report

    path = Path(target)
    if path.suffix in (".yaml", ".yml") or (not path.exists() and is_recipe_name(target)):
        return _recipe_reports(target, overrides, seq_len)
    if path.exists():
        config = _saved_config(path, overrides)
    else:
        require_architecture(target, "neither a recipe, nor a folder, nor an architecture")
        config = hf_arch.config_from_dict({"architecture": target, **config_overrides(overrides, SECTIONS)})
    return [model_report(config, seq_len or config.max_position_embeddings)]


def require_architecture(target: str, what: str) -> None:
    """Raises `ConfigError` that says `what` a word of the command line is, where it is no architecture."""
    names = hf_arch.list_architectures()
    if target not in names:
        raise ConfigError(f"{target}: {what}; {describe_choices(target, names, registry.ARCHITECTURES.listing)}")


def _recipe_reports(target: str, overrides: Sequence[str], seq_len: int | None) -> list[dict[str, Any]]:
    from hf_arch.experiments.planning.plan import plan_runs
    from hf_arch.recipe.build import build_config
    from hf_arch.recipe.recipe import load_recipe
    from hf_arch.runs.model_report import model_report

    reports = {}
    for run in plan_runs(load_recipe(target, overrides)).runs:
        if run.name not in reports:  # seeds share a model
            report = model_report(build_config(run.recipe), seq_len or run.recipe.sequence_length)
            reports[run.name] = {"run": run.name, **report}
    return list(reports.values())


def _saved_config(path: Path, overrides: Sequence[str]) -> Any:
    from hf_arch.checkpoints.checkpoint import model_folder, require_ours

    config = require_ours(model_folder(path))
    if not overrides:
        return config
    # Through the same door as everything else, so that a wrong key is found.
    values = {key: value for key, value in config.to_diff_dict().items() if not key.startswith("_")}
    for key in ("architectures", "model_type", "transformers_version", "dtype", "layer_types"):
        values.pop(key, None)
    architecture = config.model_type.removeprefix("hfa_")
    return hf_arch.config_from_dict({"architecture": architecture, **values, **config_overrides(overrides, SECTIONS)})


def _options(entry: Any) -> dict[str, Any]:
    options = getattr(entry, "Options", None)
    if options is None or not dataclasses.is_dataclass(options):
        return {}
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(options)
    }


def _first_line(entry: Any) -> str:
    return (inspect.getdoc(entry) or "").partition("\n")[0]


LISTS = {
    "--components": component_rows,
    "--corpora": corpus_rows,
    "--keys": key_rows,
    "--probes": probe_rows,
    "--tasks": task_rows,
}
"""Flag of `hf-arch list` -> its rows."""
