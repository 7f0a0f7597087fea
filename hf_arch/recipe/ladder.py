"""`experiment.ladder`: every run of a set at several sizes, each for several budgets of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hf_arch.core.errors import ConfigError, unknown_key_error

RANGE_KEYS = ("from", "to", "steps")


@dataclass(frozen=True)
class LadderOptions:
    """Each run of the set at each of the `sizes` (parameters without embeddings and head), trained on
    `tokens_per_parameter` times as many tokens. The recipe's own model gives the shape: width and depth grow together.

    rule: what changes with the size besides the model. `fixed`: nothing. `fitted`: batch and rate of OLMo's ladder.
        `mup`: muP from the recipe's own width, at its depth. `completep`: CompleteP from its width and depth.
    trunk: the schedule: `wsd`, which is warm-up, a constant rate, and a linear decay that ends each budget; or the name
        of another one from which runs can branch, alone or as a section with its options. The largest budget of a size
        is trained in one go; the others are branches, which begin from its checkpoints where their decay begins.
    decay: the share of each budget in which the rate falls to 0.
    """

    sizes: tuple[float, ...]
    tokens_per_parameter: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    rule: Literal["fixed", "fitted", "mup", "completep"] = "fixed"
    trunk: str | dict[str, Any] = "wsd"
    decay: float = 0.2

    def __post_init__(self) -> None:
        for name in ("sizes", "tokens_per_parameter"):
            values = getattr(self, name)
            if not values or not all(0 < value < math.inf for value in values) or len(set(values)) < len(values):
                raise ConfigError(f"experiment.ladder.{name}: expected numbers above 0, each once, got {list(values)}")
        if not 0 < self.decay < 1:
            raise ConfigError(f"experiment.ladder.decay: expected a share between 0 and 1, got {self.decay}")


def declared_ladder(values: Mapping[str, Any]) -> dict[str, Any]:
    """The section with `sizes: {from: 1e6, to: 1e8, steps: 5}` written as the list that it means: equal ratios."""
    section = dict(values)
    sizes = section.get("sizes")
    if not isinstance(sizes, Mapping):
        return section
    where = "experiment.ladder.sizes"
    for key in sizes:
        if key not in RANGE_KEYS:
            raise unknown_key_error(where, str(key), RANGE_KEYS)
    for key in RANGE_KEYS:
        value = sizes.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ConfigError(f"{where}.{key}: expected a number above 0, got {value!r}")
    low, high, steps = (sizes[key] for key in RANGE_KEYS)
    if not low < high:
        raise ConfigError(f"{where}.to: expected more than from ({low:g}), got {high:g}")
    if steps != int(steps) or steps < 2:
        raise ConfigError(f"{where}.steps: expected a whole number from 2, got {steps:g}")
    ratio = (high / low) ** (1 / (int(steps) - 1))
    section["sizes"] = [float(f"{low * ratio**i:.3g}") for i in range(int(steps))]
    return section
