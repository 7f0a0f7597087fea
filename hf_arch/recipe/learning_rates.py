"""`experiment.learning_rates`: the rates that every run of a set tries before it is compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_arch.core.errors import ConfigError


@dataclass(frozen=True)
class LearningRateOptions:
    """Each run is trained at each of the `rates` with `seeds` seeds of their own, on rows and seeds that the comparison
    does not use; the best is then taken for all seeds of the comparison. A best rate at the end of the grid extends it
    once, for all runs.

    runs: names of `experiment.runs` that are tried; empty: all.
    """

    rates: tuple[float, ...]
    seeds: int = 1
    runs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for rate in self.rates:
            if not (math.isfinite(rate) and rate > 0):
                raise ConfigError(f"experiment.learning_rates: {rate} is not allowed; use numbers above 0")
        if len(set(self.rates)) < max(2, len(self.rates)):
            raise ConfigError(
                f"experiment.learning_rates: expected at least two different rates, got {list(self.rates)}; "
                "one rate is training.learning_rate"
            )
        if self.seeds < 1:
            raise ConfigError(f"experiment.learning_rates.seeds: expected at least 1, got {self.seeds}")
