"""Typed options of a component: a strict dataclass read from a nested dict such as `{"type": "gla", "expand_k": 0.5}`.

An option whose value is None takes the config's own value of that meaning (`num_heads` -> `num_attention_heads`).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from inspect import get_annotations
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from ..deprecations import current_names
from .errors import ConfigError, unknown_key_error


@strict
@dataclass(kw_only=True)
class Options:
    """Base of every component's options; subclasses are decorated with `@options`."""


OptionsT = TypeVar("OptionsT", bound=Options)


def options(cls: type) -> Any:
    """Decorator: make a subclass of `Options` a strict keyword-only dataclass (types are checked on every
    assignment)."""
    for name in get_annotations(cls):
        if not hasattr(cls, name):
            raise ConfigError(f"{cls.__name__}: the option {name!r} has no default; give it one, None for the config's")
    # The checks read types, not their names, which is what a module with postponed annotations gives.
    hints = get_type_hints(cls)
    cls.__annotations__ = {name: _with_whole_numbers(hints[name]) for name in get_annotations(cls)}
    return strict(dataclass(kw_only=True)(cls))


def _with_whole_numbers(hint: Any) -> Any:
    """The type, with int wherever there is float: JSON and YAML write 2.0 as 2."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return hint | int if float in kinds else hint


def parse_options(cls: type[OptionsT], values: dict[str, Any], field: str) -> OptionsT:
    """Read `values` into `cls`.

    Raises:
        ConfigError: an unknown key (with the nearest known one) or a value of a wrong type; the line starts with
        `field`.
    """
    values = current_names(field, values)
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise unknown_key_error(field, key, known)
    try:
        return cls(**values)
    except StrictDataclassError as error:
        raise ConfigError(f"{field}: {one_line(error)}") from None


_WRONG_TYPE = re.compile(r"Field '(\w+)' expected (.+?), got \w+ \(value: (.*)\)", re.DOTALL)
_WRONG_UNION = re.compile(r"Field '(\w+)' with value (.*?) doesn't match any type in (.*?)\. Errors", re.DOTALL)


def one_line(error: Exception) -> str:
    """A strict dataclass's multi-line message as one line: `field: value is not allowed; expected type`."""
    text = str(error)
    union = _WRONG_UNION.search(text)
    if union is not None:
        allowed = union[3].replace("<class '", "").replace("'>", "").replace("NoneType", "null").strip("()")
        return f"{union[1]}: {union[2]} is not allowed; expected one of {allowed}"
    wrong = _WRONG_TYPE.search(text)
    if wrong is not None:
        return f"{wrong[1]}: {wrong[3]} is not allowed; expected {wrong[2]}"
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def compact(values: Options) -> dict[str, Any]:
    """The options as a dict without the Nones (which mean: as the config says)."""
    return {key: value for key, value in asdict(values).items() if value is not None}  # type: ignore[call-overload]
