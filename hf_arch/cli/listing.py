"""What there is to choose from, as rows for `hf-arch list --components`, and the reports behind `hf-arch info`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hf_arch
from hf_arch.core import registry
from hf_arch.core.errors import ConfigError, nearest
from hf_arch.recipe.yaml_text import parse_override

KINDS = (registry.MIXERS, registry.FFNS, registry.NORMS, registry.POSITIONS, registry.ACTIVATIONS)


def component_rows() -> list[dict[str, Any]]:
    """Kind, name, first line of the docstring, and options with their defaults, of every registered component."""
    hf_arch.list_architectures()  # loads what registers itself
    registry.load_environment_plugins()
    return [
        {"kind": kind.kind, "name": name, "summary": _first_line(entry), "options": _options(entry)}
        for kind in KINDS
        for name, entry in kind.items()
    ]


def model_reports(target: str, overrides: Sequence[str], seq_len: int | None) -> list[dict[str, Any]]:
    """Reports on an architecture's defaults, on every run of a recipe, or on a saved model.

    `overrides` are fields of the config, for a recipe dotted keys of the recipe. Raises `ConfigError` for what is
    none of the three, and for wrong options.
    """
    from hf_arch.runs.model_report import model_report

    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return _recipe_reports(target, overrides, seq_len)
    if path.exists():
        config = _saved_config(path, overrides)
    else:
        require_architecture(target, "neither a recipe, nor a folder, nor an architecture")
        config = hf_arch.config_from_dict({"architecture": target, **dict(map(parse_override, overrides))})
    return [model_report(config, seq_len or config.max_position_embeddings)]


def require_architecture(target: str, what: str) -> None:
    """Raises `ConfigError` that says `what` a word of the command line is, where it is no architecture."""
    names = hf_arch.list_architectures()
    if target not in names:
        near = nearest(target, names)
        raise ConfigError(
            f"{target}: {what}" + (f"; nearest: {near!r}" if near else "") + f"; allowed: {', '.join(names)}"
        )


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
    return hf_arch.config_from_dict({"architecture": architecture, **values, **dict(map(parse_override, overrides))})


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
