"""What was measured, before anything is concluded from it: groups of seeds, every pair's difference, the audit.

Verdicts, controls and budgets are made of this; `hf_arch.analysis.comparison` holds it together with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hf_arch.analysis.audit import confounds_of
from hf_arch.analysis.finding import Finding
from hf_arch.analysis.groups import Group, solved_at
from hf_arch.analysis.ladder import Ladder
from hf_arch.analysis.stats import PairedDifference
from hf_arch.recipe.seeds import AutoSeeds
from hf_arch.runs.columns import FilledColumn
from hf_arch.runs.numbers import Number
from hf_arch.runs.record import RunRecord, definitions
from hf_arch.runs.registration import MadeClaim


def seed_plan(runs: Sequence[RunRecord]) -> AutoSeeds | None:
    """How far seeds were to be added, by `experiment.seeds: auto`; the widest that a run records, None without."""
    plans = [plan for run in runs if isinstance(plan := run.experiment.get("sequential"), Mapping)]
    least = min((int(plan["least"]) for plan in plans), default=0)
    return AutoSeeds(least, max(int(plan["most"]) for plan in plans)) if plans else None


@dataclass(frozen=True, eq=False, repr=False)
class Measured:
    """Groups ordered best first, every pair's difference in `metric`, and the audit."""

    groups: tuple[Group, ...]
    metric: str
    baseline: str | None
    pairs: tuple[PairedDifference, ...]
    findings: tuple[Finding, ...]
    claims: tuple[MadeClaim, ...] = ()
    """Every claim that was made of the runs, removed ones included."""
    claimed_metric: str = ""
    """The number that the recipes claim something of; another one was asked for where it is not `metric`."""
    plugin_columns: tuple[FilledColumn, ...] = ()
    """What columns of plugins say of the runs."""
    ladder: Ladder | None = None

    _audited: dict[tuple[str, ...], list[Finding]] = field(default_factory=dict, init=False, repr=False)

    @property
    def runs(self) -> list[RunRecord]:
        """Every run, failed ones included."""
        return [run for group in self.groups for run in group.runs]

    @property
    def number(self) -> Number:
        """What the metric is."""
        return definitions(self.runs)[self.metric]

    @property
    def lower_is_better(self) -> bool:
        """Direction of the metric."""
        return not self.number.higher_is_better

    @property
    def metric_name(self) -> str:
        """The metric in words."""
        return self.number.words

    def group(self, name: str) -> Group:
        """The group called `name`."""
        return next(group for group in self.groups if group.name == name)

    def pair(self, first: str, second: str) -> PairedDifference | None:
        """The difference `first` minus `second`, whichever way round it was computed."""
        for pair in self.pairs:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.first, pair.second) == (second, first):
                return pair.reversed()
        return None

    @property
    def solved_at(self) -> float | None:
        """The accuracy from which a seed solved the probe; None where the runs are of text, or of another metric."""
        return solved_at(self.runs, self.metric)

    @property
    def seed_plan(self) -> AutoSeeds | None:
        """How far seeds were to be added, by `experiment.seeds: auto`; the widest that a run records, None without."""
        return seed_plan(self.runs)

    @property
    def control_names(self) -> set[str]:
        """The groups that are controls for a claim about others."""
        return {group.name for group in self.groups if any(run.experiment.get("control") for run in group.runs)}

    def confounds(self, *names: str) -> list[Finding]:
        """What besides a claim may explain how these groups differ: violations of the audit of their runs alone."""
        if names not in self._audited:
            runs = [run for name in names for run in self.group(name).runs]
            self._audited[names] = confounds_of(runs, self.metric)
        return self._audited[names]

    def confounding_checks(self, *names: str) -> tuple[str, ...]:
        """Names of the checks behind `confounds`."""
        return tuple(dict.fromkeys(finding.check for finding in self.confounds(*names)))

    def versus_baseline(self, name: str) -> str:
        """In words: how `name` stands to the baseline."""
        if name == self.baseline:
            return "baseline"
        pair = self.pair(name, self.baseline) if self.baseline else None
        if pair is None or self.baseline is None:
            return ""
        return self.words(pair, pair.brief)

    def words(self, pair: PairedDifference, said: str | None = None) -> str:
        """A pair's difference in words, its own or those given, with what confounds it."""
        said = pair.words if said is None else said
        checks = self.confounding_checks(pair.first, pair.second) if pair.verdict in ("better", "worse") else ()
        return f"{said}, confounded ({', '.join(checks)})" if checks else said
