"""`experiment.tune`: learning rates that are sampled, each next one by what the earlier ones came to."""

from __future__ import annotations

from dataclasses import dataclass

from hf_arch.core.errors import ConfigError


@dataclass(frozen=True)
class TuneOptions:
    """Learning rates sampled by Optuna between `low` and `high`, as many `trials` for each run of the set: each next
    one goes by what the run's earlier ones came to (extra `optuna`).
    """

    low: float
    high: float
    trials: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ConfigError(f"experiment.tune.low: expected above 0 and below high ({self.high}), got {self.low}")
        if self.trials < 1:
            raise ConfigError(f"experiment.tune.trials: expected at least 1, got {self.trials}")
