"""Typed options from plain YAML values: a dataclass in, one-line errors out.

`parse_section(SomeDataclass, values, where)` checks every key against the fields and every value against its
annotation. Numbers written as text (`"1e-3"`) become numbers, whole floats become integers where an integer is asked
for; nothing else is converted, so that a wrong type is named instead of guessed at.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from hf_arch.core.errors import ConfigError, choice_error, unknown_key_error
from hf_arch.deprecations import current_names

Options = TypeVar("Options")
LARGEST = 2**53
"""Of whole numbers; above it a float, which JSON's readers make of a number, does not know all of them."""
LIST_KEYS = "hf-arch list --keys"
"""The command that lists every key of a recipe."""
LISTINGS = {"training.optim": "hf-arch list --components"}
"""Fields with long lists of values -> the command that shows them."""


def parse_section(cls: type[Options], values: object, where: str) -> Options:
    """An instance of the dataclass `cls` from a mapping. Raises `ConfigError` naming `where.key` for a wrong key or
    value.
    """
    mapping = current_names(where, require_mapping(values, where))
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(typing.cast(Any, cls)) if field.init]
    for key in mapping:
        if key not in names:
            raise unknown_key_error(where, str(key), names, LIST_KEYS)
    parsed = {key: coerce(value, hints[key], f"{where}.{key}") for key, value in mapping.items()}
    try:
        return cls(**parsed)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def plain_values(options: Any) -> Any:
    """A dataclass as nested dicts and lists, which `parse_section` reads back."""
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        return {entry.name: plain_values(getattr(options, entry.name)) for entry in dataclasses.fields(options)}
    if isinstance(options, Mapping):
        return {key: plain_values(value) for key, value in options.items()}
    return [plain_values(item) for item in options] if isinstance(options, (list, tuple)) else options


def set_values(options: Any) -> dict[str, Any]:
    """The fields of a dataclass, as plain values, that have no default or another value than it."""
    unset = {entry.name: plain_values(entry.default) for entry in dataclasses.fields(options)}
    unset |= {
        entry.name: plain_values(entry.default_factory())
        for entry in dataclasses.fields(options)
        if entry.default_factory is not dataclasses.MISSING
    }
    return {name: value for name, value in plain_values(options).items() if value != unset[name]}


def require_mapping(values: object, where: str) -> Mapping[str, Any]:
    """`values` itself where it is a mapping with text keys (None counts as empty); `ConfigError` otherwise."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a section of `key: value` lines, got {type(values).__name__} {values!r}")
    for key in values:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: expected text as a key, got {type(key).__name__} {key!r}")
    return values


def coerce(value: Any, hint: Any, field: str) -> Any:
    """`value` as the annotation `hint` asks for it. Raises `ConfigError` naming the field, the value and what is
    expected.
    """
    options = _union_members(hint)
    if value is None:
        if type(None) in options or hint is Any:
            return None
        raise ConfigError(f"{field}: expected {describe_type(hint)}, got nothing")
    for option in options:
        done, result = _convert(value, option, field)
        if done:
            return result
    choices = [choice for option in options for choice in _choices(option)]
    if choices and isinstance(value, str):
        raise choice_error(field, value, choices, LISTINGS.get(field))
    raise ConfigError(f"{field}: expected {describe_type(hint)}, got {type(value).__name__} {value!r}")


def describe_type(hint: Any) -> str:
    """The annotation in words: `int`, `a number`, `text or nothing`, `one of 'a', 'b'`, `a list of int`."""
    words = {
        int: "an integer",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "nothing",
        Any: "any value",
    }
    names = []
    for option in _union_members(hint):
        if option in words:
            names.append(words[option])
        elif choices := _choices(option):
            names.append("one of " + ", ".join(repr(choice) for choice in choices))
        elif typing.get_origin(option) in (list, tuple):
            names.append("a list of " + describe_type((typing.get_args(option) or (Any,))[0]))
        elif option in (list, tuple):
            names.append("a list")
        else:
            names.append("a section of `key: value` lines")
    return " or ".join(dict.fromkeys(names))


def _union_members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; enumerations replace the bare `str` that often stands next to them."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if any(isinstance(member, type) and issubclass(member, enum.Enum) for member in members):
        members = tuple(member for member in members if member is not str)
    # Exact types first, so that `float | int` keeps an integer and `str | int` does not read "12" as a number.
    return tuple(sorted(members, key=lambda member: {bool: 0, int: 1, float: 2}.get(member, 3)))


def _choices(option: Any) -> list[Any]:
    if typing.get_origin(option) is typing.Literal:
        return list(typing.get_args(option))
    if isinstance(option, type) and issubclass(option, enum.Enum):
        return [member.value for member in option]
    return []


def _convert(value: Any, option: Any, field: str) -> tuple[bool, Any]:
    """(True, converted) where `value` fits the single type `option`, else (False, None)."""
    origin = typing.get_origin(option)
    if option is Any:
        return True, value
    if choices := _choices(option):
        plain = value.value if isinstance(value, enum.Enum) else value
        return plain in choices, plain
    if option is bool:
        return isinstance(value, bool), value
    if option in (int, float):
        done, number = _number(value, option)
        if done and option is int and abs(number) > LARGEST:
            raise ConfigError(f"{field}: {value!r} is too large; allowed: up to {LARGEST:,}")
        return done, number
    if option is str:
        return isinstance(value, str), value
    if option in (list, tuple) or origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return False, None
        inner = (typing.get_args(option) or (Any,))[0]
        items = [coerce(item, inner, f"{field}[{index}]") for index, item in enumerate(value)]
        return True, tuple(items) if tuple in (option, origin) else items
    if option in (dict, Mapping) or origin in (dict, Mapping) or (origin and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            return False, None
        arguments = typing.get_args(option)
        inner = arguments[1] if len(arguments) == 2 else Any
        return True, {key: coerce(item, inner, f"{field}.{key}") for key, item in require_mapping(value, field).items()}
    if dataclasses.is_dataclass(option) and isinstance(option, type):
        if isinstance(value, option):
            return True, value
        return (True, parse_section(option, value, field)) if isinstance(value, Mapping) else (False, None)
    return False, None


def _number(value: Any, kind: type) -> tuple[bool, Any]:
    if isinstance(value, bool):
        return False, None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False, None
    if not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:  # also no NaN
        return False, None
    if kind is float:
        return True, float(value)
    return float(value).is_integer(), int(value) if float(value).is_integer() else None
