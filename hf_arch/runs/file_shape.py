"""What a file of a run must be before it is read: of a version that is known, with objects where objects belong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError


def check_version(file: Path, version: object, newest: int) -> None:
    """Raises ConfigError for a `schema_version` above `newest`, or one that is no whole number from 1; None, of before
    versions were written, is allowed."""
    if version is None or (isinstance(version, int) and not isinstance(version, bool) and 0 < version <= newest):
        return
    if isinstance(version, int) and version > newest:
        raise ConfigError(
            f"{file}: schema_version: {version} was written by a newer hf_arch; this one reads up to {newest}"
        )
    raise ConfigError(f"{file}: schema_version: expected a whole number from 1, found {version!r}")


def check_objects(file: Path, values: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises ConfigError where one of these values is there and is no object."""
    for name in names:
        value = values.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{file}: {name}: expected an object or null, found {str(value)[:80]!r}")
