"""Dotted keys and nested mappings: `model.hidden_size` is `hidden_size` in `model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.recipe.sections import require_mapping


def nested(changes: object, where: str) -> dict[str, Any]:
    """`{model.hidden_size: 64}` as `{model: {hidden_size: 64}}`."""
    nested: dict[str, Any] = {}
    for key, value in require_mapping(changes, where).items():
        nested = set_dotted(nested, key, value)
    return nested


def dotted(values: Mapping[str, Any], where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{model: {hidden_size: [64]}}` as `{model.hidden_size: [64]}`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted(require_mapping(value, f"{where}.{key}"), f"{where}.{key}", f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_dotted(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of the nested `values` with `value` at the dotted `key`; mappings are merged, everything else is
    replaced.
    """
    if not isinstance(key, str):
        raise ConfigError(f"recipe: expected text as a key, got {type(key).__name__} {key!r}")
    head, _, rest = key.partition(".")
    result = dict(values)
    inner = result.get(head)
    if rest:
        if inner is not None and not isinstance(inner, Mapping):
            raise ConfigError(f"{key}: {head!r} is {type(inner).__name__} {inner!r} and has no keys")
        result[head] = set_dotted(inner or {}, rest, value)
    elif isinstance(inner, Mapping) and isinstance(value, Mapping):
        for inner_key, inner_value in value.items():
            inner = set_dotted(inner, inner_key, inner_value)
        result[head] = inner
    else:
        result[head] = value
    return result
