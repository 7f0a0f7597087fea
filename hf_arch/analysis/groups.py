"""The runs of one name: what a row of a table, a side of a claim and a point of a curve are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hf_arch.analysis.stats import Interval, t_interval
from hf_arch.core.files import finite
from hf_arch.runs.record import RunRecord

SOLVED = 0.99


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one name. `counted` (one a seed, at the best learning rate) are those whose numbers are reported."""

    name: str
    runs: tuple[RunRecord, ...]
    counted: tuple[RunRecord, ...]
    rates: dict[float, Interval] = field(default_factory=dict)

    @property
    def reference(self) -> RunRecord:
        """The run that stands for the group in what its seeds share: architecture, components, sizes."""
        return self.counted[0] if self.counted else self.runs[0]

    @property
    def failed(self) -> int:
        """Runs that did not complete."""
        return sum(not run.completed for run in self.runs)

    def by_seed(self, key: str) -> dict[int, float]:
        """{seed: value} of one measured number over the counted runs."""
        return {run.seed or 0: run.numbers[key] for run in self.counted if key in run.numbers}

    def interval(self, key: str) -> Interval | None:
        """Mean and 95 % t interval of one measured number; None where no counted run has it."""
        values = list(self.by_seed(key).values())
        return t_interval(values) if values else None

    def mean(self, key: str) -> float | None:
        """Mean of one measured number; None where no counted run has it."""
        interval = self.interval(key)
        return None if interval is None else interval.mean


def solved_at(runs: Sequence[RunRecord], metric: str) -> float | None:
    """The accuracy from which these runs of a probe count as solved: their `probe.stop_accuracy`, 0.99 without one."""
    probes = [run.config.get("probe") for run in runs]
    if not metric.startswith(("accuracy", "best_accuracy")) or not all(isinstance(probe, Mapping) for probe in probes):
        return None
    return max((finite(probe.get("stop_accuracy")) or SOLVED for probe in probes if probe), default=None)
