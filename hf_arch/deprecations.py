"""Config fields, component options and recipe keys that were renamed: the old name works for two minor versions.

`RENAMED` is the only place for it. An old name is replaced as soon as it is read, so that saved files, hashes and the
rest of the code know the new one alone, and one warning line is logged for each old name that was used.
docs/deprecations.md is made from this table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .core.errors import ConfigError
from .core.warn import warn_once

MINOR_VERSIONS = 2
"""For so many minor versions after `since` an old name keeps working."""


@dataclass(frozen=True)
class Renamed:
    """One renamed key.

    where: what holds it: `model` (also options given flat), `mixer gla`, `ffn moe`, or a section of a recipe such as
        `training` or `experiment.match`.
    since: the version that brought the new name, such as `0.2`.
    """

    where: str
    old: str
    new: str
    since: str

    @property
    def until(self) -> str:
        """The first version that does not know the old name."""
        major, minor = map(int, self.since.split(".")[:2])
        return f"{major}.{minor + MINOR_VERSIONS}"


RENAMED: tuple[Renamed, ...] = ()


def current_names(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the new names of the keys that were renamed in `where`, in their order.

    Raises:
        ConfigError: both the old and the new name are given.
    """
    renamed = {entry.old: entry for entry in RENAMED if entry.where == where}
    for old, entry in renamed.items():
        if old in values:
            if entry.new in values:
                raise ConfigError(f"{where}.{old}: was renamed to {entry.new!r}, which is given too; leave {old!r} out")
            warn_once(
                entry,
                "warning: %s.%s: renamed to %r in version %s; the old name works until version %s",
                *(entry.where, entry.old, entry.new, entry.since, entry.until),
            )
    return {renamed[key].new if key in renamed else key: value for key, value in values.items()}


def overdue(version: str, renamed: Iterable[Renamed] | None = None) -> list[Renamed]:
    """The entries that a release of `version` may no longer have."""
    now = tuple(map(int, version.split(".")[:2]))
    entries = RENAMED if renamed is None else renamed
    return [entry for entry in entries if tuple(map(int, entry.until.split("."))) <= now]
