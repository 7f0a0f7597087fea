"""The page on every key of a recipe, made from the code: `python -m tools.recipe_page > docs/recipe_keys.md`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

import torch
import transformers
import yaml
from transformers import TrainingArguments

from hf_arch.data import DataOptions
from hf_arch.models.configuration import ArchConfig
from hf_arch.recipe.evaluation import EvaluationOptions
from hf_arch.recipe.experiment import ExperimentOptions
from hf_arch.recipe.ladder import LadderOptions
from hf_arch.recipe.learning_rates import LearningRateOptions
from hf_arch.recipe.match import MatchOptions
from hf_arch.recipe.probe import ProbeOptions
from hf_arch.recipe.training_section import RESERVED_TRAINING, training_fields
from hf_arch.recipe.tune import TuneOptions
from hf_arch.training.arguments import DEFAULTS
from hf_arch.training.step_watch import DEFAULT_MAX_SKIPPED_STEPS
from tools import recipe_keys

HEAD = """# Every key of a recipe

Made by `python -m tools.recipe_page > docs/recipe_keys.md`; a test keeps it equal to the code, and reads every example.

A recipe is YAML with the sections below. `section.key=value` on the command line wins over the file. A key that is not
here is an error that names the nearest ones. [experiments.md](experiments.md) says what the sections are for.
"""

MODEL_TEXT = """The keys that every architecture has; `hf-arch info ARCH --options` shows the defaults of one, with the
options of its parts. A part is a name or a mapping with its `type` and options, such as `{type: gla, expand_k: 0.5}`:
[architectures.md](architectures.md) and [parts.md](parts.md) have them all. Defaults here are those of the base class
of all configs; an architecture has its own.
"""

TRAINING_TEXT = """The names of `transformers.TrainingArguments`, and three of ours at the head. Those that a recipe
often sets are explained. Defaults are those of hf_arch where it has one, else those of transformers {version}.
"""


REQUIRED = "required"


class Key(NamedTuple):
    """One row: `example` is YAML for the key alone."""

    name: str
    type: str
    unit: str
    default: str
    example: str
    meaning: str


class Section(NamedTuple):
    title: str
    path: str
    text: str
    keys: list[Key]


def sections() -> list[Section]:
    """All sections in the order of the page; `path` is the dotted name that stands before the keys."""
    return [
        Section("model", "model", MODEL_TEXT, [_architecture(), _plugins(), *_fields(ArchConfig, recipe_keys.MODEL)]),
        Section("data", "data", "", _fields(DataOptions, recipe_keys.DATA)),
        Section("probe", "probe", "Instead of `data` and `evaluation`.\n", _fields(ProbeOptions, recipe_keys.PROBE)),
        Section("training", "training", TRAINING_TEXT.format(version=_minor()), list(_training())),
        Section("evaluation", "evaluation", "", _fields(EvaluationOptions, recipe_keys.EVALUATION)),
        Section("experiment", "experiment", "", _fields(ExperimentOptions, recipe_keys.EXPERIMENT)),
        Section("experiment.match", "experiment.match", "", _fields(MatchOptions, recipe_keys.MATCH)),
        Section(
            "experiment.learning_rates",
            "experiment.learning_rates",
            "",
            _fields(LearningRateOptions, recipe_keys.LEARNING_RATES),
        ),
        Section("experiment.ladder", "experiment.ladder", "", _fields(LadderOptions, recipe_keys.LADDER)),
        Section("experiment.tune", "experiment.tune", "", _fields(TuneOptions, recipe_keys.TUNE)),
    ]


def page() -> str:
    """The whole page as Markdown."""
    return HEAD + "".join(section_text(section) for section in sections())


def section_text(section: Section) -> str:
    """One section of the page, from its heading on."""
    lines = [f"\n## {section.title}\n", *([section.text] if section.text else [])]
    lines += ["| key | type | unit | default | example | meaning |", "|---|---|---|---|---|---|"]
    for key in section.keys:
        default = key.default if key.default == REQUIRED else _code(key.default)
        cells = (_code(key.name), key.type, key.unit, default, _code(key.example), key.meaning)
        lines.append(f"| {' | '.join(cell.replace('|', ', ') for cell in cells)} |")
    if section.path == "training":
        lines += ["\nRefused, since something else decides them:\n", "| key | instead |", "|---|---|"]
        lines += [f"| `{name}` | {why} |" for name, why in RESERVED_TRAINING.items()]
    return "\n".join(lines) + "\n"


def _minor() -> str:
    return transformers.__version__.rpartition(".")[0]


def _architecture() -> Key:
    meaning, unit, example = recipe_keys.MODEL["architecture"]
    return Key("architecture", "text", unit, REQUIRED, example, meaning)


def _plugins() -> Key:
    meaning, unit, example = recipe_keys.MODEL["plugins"]
    return Key("plugins", "list of text", unit, "[]", example, meaning)


def _fields(cls: Any, entries: dict[str, recipe_keys.Entry]) -> list[Key]:
    """A key for each field of a dataclass of options (of a config: those that it adds to transformers')."""
    hints = typing.get_type_hints(cls, localns={"torch": torch})
    told = dict(_told(cls))
    keys = []
    for field in dataclasses.fields(cls):
        if cls is ArchConfig and field.name not in entries:
            continue
        default = _default(field)
        known = default is not dataclasses.MISSING
        meaning, unit, example = entries.get(field.name) or (told.get(field.name, ""), "", _yaml(default))
        keys.append(
            Key(field.name, _type(hints[field.name]), unit, _yaml(default) if known else REQUIRED, example, meaning)
        )
    return keys


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _told(cls: Any) -> Iterator[tuple[str, str]]:
    """(name, text) of the lines `name: text` or `name, name: text` of a docstring."""
    for names, text in re.findall(r"^\s*([a-z_]+(?:, [a-z_]+)*): (.+)$", inspect.getdoc(cls) or "", re.M):
        for name in names.split(", "):
            yield name, text.rstrip(".")


def _training() -> Iterator[Key]:
    defaults = {field.name: _default(field) for field in dataclasses.fields(TrainingArguments)}
    defaults |= {**DEFAULTS, "precision": "auto", "zero_redundancy": False, "num_train_epochs": 1.0}
    defaults["max_skipped_steps"] = DEFAULT_MAX_SKIPPED_STEPS
    hints = training_fields()
    for name in [*recipe_keys.TRAINING, *(name for name in hints if name not in recipe_keys.TRAINING)]:
        default = None if defaults[name] is dataclasses.MISSING else defaults[name]
        meaning, unit, example = recipe_keys.TRAINING.get(name) or (
            "as in transformers",
            "",
            _yaml(default) if default not in (None, "") else _sample(hints[name]),
        )
        yield Key(name, _type(hints[name]), unit, _yaml(default), example, meaning)


def _sample(hint: Any) -> str:
    """A value of this type, as YAML."""
    members = [member for member in (typing.get_args(hint) or (hint,)) if member is not type(None)]
    samples = {bool: "false", int: "1", float: "1.0", str: "text"}
    for member in members:
        if member in samples:
            return samples[member]
        if typing.get_origin(member) is list:
            return "[]"
        if typing.get_origin(member) is dict or member is dict:
            return "{}"
    return "null"


def _type(hint: Any) -> str:
    """A type in the words of YAML."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(member) for member in inside))
    if origin is typing.Literal:
        names = ", ".join(f"`{_yaml(value)}`" for value in inside)
        return f"one of {names}" if len(inside) < 8 else "text, a known name"
    if origin in (list, tuple):
        return f"list of {_type(inside[0])}" if inside and inside[0] is not Any else "list"
    if origin is not None and origin.__name__ in ("dict", "Mapping"):
        return "mapping"
    if hint is type(None):
        return "null"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "text"
    if dataclasses.is_dataclass(hint):
        return "mapping"
    return {bool: "true or false", int: "whole number", float: "number", str: "text", dict: "mapping"}.get(hint, "any")


def _yaml(value: Any) -> str:
    """A value as YAML in one line."""
    if value is dataclasses.MISSING:
        return "null"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return text.removesuffix("\n...").removesuffix("...").strip()


def _code(text: str) -> str:
    return "" if text == "" else f"`{text}`"


if __name__ == "__main__":
    print(page(), end="")
