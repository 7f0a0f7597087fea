"""`experiment.seeds: auto`: as many seeds as the claims need, between `least` and `most`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_arch.core.errors import ConfigError

MOST = 32


@dataclass(frozen=True)
class AutoSeeds:
    """Seeds 1 to `least` are trained first, then one more at a time while a claim is undecided, up to `most`."""

    least: int = 3
    most: int = 8

    def __post_init__(self) -> None:
        if self.least < 2:
            raise ConfigError(f"experiment.seeds.least: expected at least 2, got {self.least}")
        if not self.least < self.most <= MOST:
            raise ConfigError(
                f"experiment.seeds.most: expected above least ({self.least}), up to {MOST}, got {self.most}"
            )

    @property
    def looks(self) -> range:
        """The numbers of seeds after which the claims are looked at."""
        return range(self.least, self.most + 1)

    @staticmethod
    def first(count: int) -> tuple[int, ...]:
        """The first `count` seeds."""
        return tuple(range(1, count + 1))

    def to_dict(self) -> dict[str, int]:
        """Plain values, as runs record them."""
        return {"least": self.least, "most": self.most}


def written_seeds(seeds: Any) -> Any:
    """`auto`, and `{auto: true, from: 3, most: 8}`, as `{least: 3, most: 8}`; anything else as it is."""
    if seeds == "auto":
        return {}
    if not isinstance(seeds, Mapping):
        return seeds
    values = dict(seeds)
    if values.pop("auto", True) is not True:
        raise ConfigError("experiment.seeds.auto: expected true; give a list or a number for fixed seeds")
    if "from" in values:
        if "least" in values:
            raise ConfigError("experiment.seeds: `from` and `least` are the same; give one of them")
        values["least"] = values.pop("from")
    return values
