"""`experiment.match`: what the models of a set are made equal in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_arch.core.errors import ConfigError


@dataclass(frozen=True)
class MatchOptions:
    """Make the runs equal in `by`: the first run, or the run called `reference`, sets the number; the others change
    `vary`, which is a whole number of the `model` section, or `auto`: the width of the FFN, else of the model.

    by: `parameters`, `flops` (of training, per token), or `state` (bytes of cache at the length of the rows).
    tolerance: the largest relative difference that is let through. free: runs that are left as they are written.
    """

    by: Literal["parameters", "flops", "state"] = "parameters"
    tolerance: float = 0.01
    reference: str | None = None
    vary: str = "auto"
    free: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ConfigError(f"experiment.match.tolerance: expected a share between 0 and 1, got {self.tolerance}")
