"""Components as a config holds them: a name, a dict with a `type`, or a pattern of these over the layers."""

import re
from dataclasses import fields
from typing import Any

from ..core.errors import ConfigError, describe_choices
from ..core.options import Options, compact, parse_options
from ..core.registry import Registry


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def has_option(components: tuple[tuple[Any, Registry[Any]], ...], name: str) -> bool:
    """Whether one of the given components has such an option."""
    return any(
        name in option_names(registry.get(spec["type"])) for value, registry in components for spec in as_list(value)
    )


def option_names(component: Any) -> list[str]:
    """Names of the options of a registered component."""
    options_class: type[Options] = component.Options
    return [f.name for f in fields(options_class)]


def normalise(value: Any, registry: Registry[Any], field: str, default: Any) -> Any:
    """A name, dict or pattern -> a dict, or a list of dicts with repetitions written out; each a fresh copy with
    its `type`."""
    if isinstance(value, list):
        if not value:
            raise ConfigError(f"{field}: an empty pattern; give at least one of: {', '.join(registry)}")
        return [spec for item in value for spec in _repeat(item, registry, field)]
    return with_type(value, registry, field, default)


def _repeat(item: Any, registry: Registry[Any], field: str) -> list[dict[str, Any]]:
    if not isinstance(item, str) or "*" not in item:
        return [with_type(item, registry, field, None)]
    match = re.fullmatch(r"\s*(\w+)\s*\*\s*([1-9]\d*)\s*", item)
    if match is None:
        raise ConfigError(f'{field}: {item!r} is not a pattern entry; write a name, "name*3" or a dict')
    return [with_type(match[1], registry, field, None) for _ in range(int(match[2]))]


def with_type(value: Any, registry: Registry[Any], field: str, default: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, dict):
        choices = describe_choices("", registry, registry.listing)
        raise ConfigError(f"{field}: {value!r} is neither a name nor a dict with a `type`; {choices}")
    if "type" not in value:
        if not isinstance(default, str):
            choices = describe_choices("", registry, registry.listing)
            raise ConfigError(f"{field}: the dict has no `type`; {choices}")
        value = {"type": default, **value}
    registry.get(value["type"], field)
    return dict(value)


def parse(spec: dict[str, Any], registry: Registry[Any], field: str) -> tuple[Any, Any]:
    component = registry.get(spec["type"], field)
    given = {key: value for key, value in spec.items() if key != "type"}
    return component, parse_options(component.Options, given, f"{field} {spec['type']}")


def resolve(value: Any, registry: Registry[Any], field: str) -> Any:
    def one(spec: dict[str, Any]) -> dict[str, Any]:
        return {"type": spec["type"], **compact(parse(spec, registry, field)[1])}

    return [one(spec) for spec in value] if isinstance(value, list) else one(value)


def part_list(value: Any, registry: Registry[Any], field: str) -> list[dict[str, Any]]:
    """A name, a dict or a list of these -> a list of dicts with every option that is set; None is no part."""
    given = [] if value is None else as_list(value)
    return [resolve(with_type(item, registry, field, None), registry, field) for item in given]
