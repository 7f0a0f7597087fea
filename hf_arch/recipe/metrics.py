"""`evaluation.metrics` of a recipe: names of registered metrics, each alone or as a section with its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.core.options import parse_options
from hf_arch.core.registry import METRICS

FIELD = "evaluation.metrics"


def metric_entries(entries: Sequence[Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (class, parsed options)}. Raises `ConfigError` for an unknown name, an option that it does not have, and a
    metric that is named twice."""
    found: dict[str, tuple[Any, Any]] = {}
    for index, entry in enumerate(entries):
        field = f"{FIELD}[{index}]"
        values = dict(entry) if isinstance(entry, Mapping) else {"type": entry}
        name = values.pop("type", None)
        if not isinstance(name, str):
            raise ConfigError(f"{field}: expected the name of a metric, or a section with its `type`, got {entry!r}")
        kind = METRICS.get(name, field)
        if not name.isidentifier():
            raise ConfigError(f"{field}: {name!r} is not allowed; use letters, digits and _, e.g. 'repetition'")
        if name in found:
            raise ConfigError(f"{FIELD}: {name!r} is named twice")
        found[name] = (kind, parse_options(kind.Options, values, field))
    return found
