"""Every key of a recipe, as rows for `hf-arch list --keys`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from hf_arch.core.errors import MOST_LISTED
from hf_arch.data import DataOptions
from hf_arch.recipe.evaluation import EvaluationOptions
from hf_arch.recipe.experiment import ExperimentOptions
from hf_arch.recipe.probe import ProbeOptions
from hf_arch.recipe.sections import describe_type
from hf_arch.recipe.training_section import training_fields
from hf_arch.training.arguments import DEFAULTS
from hf_arch.training.step_watch import DEFAULT_MAX_SKIPPED_STEPS

SECTIONS: Mapping[str, Any] = {
    "data": DataOptions,
    "probe": ProbeOptions,
    "evaluation": EvaluationOptions,
    "experiment": ExperimentOptions,
}
TRAINING_DEFAULTS = {
    **DEFAULTS,
    "precision": "auto",
    "zero_redundancy": False,
    "num_train_epochs": 1.0,
    "max_skipped_steps": DEFAULT_MAX_SKIPPED_STEPS,
}
"""Where they are not those of transformers."""


def key_rows() -> list[dict[str, Any]]:
    """Name, type and default of everything that a recipe may say but for its model, whose keys are its architecture's:
    `hf-arch info ARCH --options` lists those."""
    rows = [row for section, options in SECTIONS.items() for row in _rows(section, options)]
    defaults = {field.name: _default(field) for field in dataclasses.fields(TrainingArguments)} | TRAINING_DEFAULTS
    return rows + [
        {"name": f"training.{name}", "type": _words(hint), "default": defaults[name]}
        for name, hint in sorted(training_fields().items())
    ]


def _rows(where: str, options: Any) -> list[dict[str, Any]]:
    """The fields of a dataclass; those of one within it come after the field."""
    rows = []
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        hint = hints[field.name]
        inner = [member for member in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(member)]
        rows.append({"name": f"{where}.{field.name}", "type": _words(hint), "default": _default(field)})
        for section in inner:
            rows += _rows(f"{where}.{field.name}", section)
    return rows


def _words(hint: Any) -> str:
    """The type; of a long list of names only that it is one, since `hf-arch list` shows that list itself."""
    names = [name for member in typing.get_args(hint) or () if isinstance(name := member, str)]
    if len(names) > MOST_LISTED:
        return "one of many names"
    return describe_type(hint)


def _default(field: Any) -> Any:
    """The default in terms of JSON; "required" where there is none."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else list(value)
