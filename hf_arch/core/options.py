"""Typed options of a component: a strict dataclass read from a nested dict such as `{"type": "gla", "expand_k": 0.5}`.

An option whose value is None takes the config's own value of that meaning (`num_heads` -> `num_attention_heads`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from inspect import get_annotations
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

from huggingface_hub.dataclasses import strict, type_validator
from huggingface_hub.errors import StrictDataclassError

from ..deprecations import current_names
from .errors import ConfigError, unknown_key_error


@strict
@dataclass(kw_only=True)
class Options:
    """Base of every component's options; subclasses are decorated with `@options`."""


_SCALARS = frozenset({NoneType, bool, int, float, str})
_PARSED: WeakKeyDictionary[type, dict[tuple[tuple[str, str], ...], dict[str, Any]]] = WeakKeyDictionary()
"""The attributes of options that were read before, by their class and what was given: a config reads those of each
layer again whenever it is asked for them, and checking types is most of what that takes."""

OptionsT = TypeVar("OptionsT", bound=Options)


def options(cls: type) -> Any:
    """Decorator: make a subclass of `Options` a strict keyword-only dataclass (types are checked on every
    assignment)."""
    for name in get_annotations(cls):
        if not hasattr(cls, name):
            raise ConfigError(f"{cls.__name__}: the option {name!r} has no default; give it one, None for the config's")
    # The checks read types, not their names, which is what a module with postponed annotations gives.
    hints = get_type_hints(cls)
    cls.__annotations__ = {name: with_whole_numbers(hints[name]) for name in get_annotations(cls)}
    return strict(dataclass(kw_only=True)(cls))


def with_whole_numbers(hint: Any) -> Any:
    """The type, with int wherever there is float: JSON and YAML write 2.0 as 2."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return hint | int if float in kinds else hint


def parse_options(cls: type[OptionsT], values: dict[str, Any], field: str) -> OptionsT:
    """Read `values` into `cls`.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of a wrong type, or a number that is none
        (nan, inf); the line starts with `field`.
    """
    values = current_names(field, values)
    scalar = all(type(value) in _SCALARS for value in values.values())
    parsed = _PARSED.setdefault(cls, {}) if scalar else {}
    key = tuple((name, repr(value)) for name, value in values.items()) if scalar else ()
    if key in parsed:
        again = object.__new__(cls)
        again.__dict__.update(parsed[key])
        return again
    known = [f.name for f in fields(cls)]
    for name in values:
        if name not in known:
            raise unknown_key_error(field, name, known)
        value = values[name]
        if isinstance(value, float) and not isfinite(value):
            error = f"{name}: {value!r} is not allowed; use a finite number"
            raise ConfigError(error, field=name, value=value).within(field, ": ")
    try:
        made = cls(**values)
    except StrictDataclassError as error:
        wrong = mistyped(cls, values)
        raise (
            wrong.within(field, ": ") if wrong else ConfigError(f"{field}: {one_line(error)}", field=field)
        ) from None
    if all(type(value) in _SCALARS for value in vars(made).values()):
        parsed[key] = dict(vars(made))
    return made


def mistyped(cls: type, values: Mapping[str, Any]) -> ConfigError | None:
    """The error of the first value that the type of its field in `cls` refuses: `field: value is not allowed; expected
    type`. None where every value has its type."""
    return mistyped_by({entry.name: entry.type for entry in fields(cls)}, values)


def mistyped_by(hints: Mapping[str, Any], values: Mapping[str, Any]) -> ConfigError | None:
    """The same by the types of names; what has none may be anything."""
    for name, value in values.items():
        try:
            type_validator(name, value, hints.get(name, Any))
        except TypeError:
            message = f"{name}: {value!r} is not allowed; expected {_words(hints[name])}"
            return ConfigError(message, field=name, value=value)
    return None


def _words(hint: Any) -> str:
    """A type as a reader of YAML knows it: `int`, `one of int, null`, `one of 'a', 'b'`."""
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return "one of " + ", ".join(_words(member) for member in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    return "null" if hint is NoneType else hint.__name__ if get_origin(hint) is None else str(hint)


def one_line(error: Exception) -> str:
    """A message of several lines as one."""
    return " ".join(part.strip() for part in str(error).splitlines() if part.strip())


def compact(values: Options) -> dict[str, Any]:
    """The options as a dict without the Nones (which mean: as the config says)."""
    return {key: value for key, value in asdict(values).items() if value is not None}
