"""A comparison as data: groups of seeds, every pair's difference, the audit, the verdicts.

It neither prints nor judges itself: `hf_arch.analysis.compare` makes one, `hf_arch.report` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_arch.analysis.audit import confounds_of
from hf_arch.analysis.columns import benchmark_scores, interval_text
from hf_arch.analysis.finding import Finding
from hf_arch.analysis.run_names import either, together
from hf_arch.analysis.sequential import spending_words
from hf_arch.analysis.stats import Interval, PairedDifference, bootstrap_interval, t_interval
from hf_arch.core.files import finite, to_jsonable
from hf_arch.recipe.seeds import AutoSeeds
from hf_arch.runs.columns import FilledColumn
from hf_arch.runs.numbers import Number, Reader
from hf_arch.runs.record import RunRecord, definitions, numbers_for
from hf_arch.runs.registration import MadeClaim
from hf_arch.runs.suite import flat_row

if TYPE_CHECKING:
    import pandas as pd

    from hf_arch.analysis.budgets import PairBudgets
    from hf_arch.analysis.controls import Controlled
    from hf_arch.analysis.item_tests import ItemTest
    from hf_arch.analysis.ladder import Ladder
    from hf_arch.analysis.scaling_laws import ScalingLaw
    from hf_arch.analysis.verdicts import Verdict


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


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """The answer: groups ordered best first, every pair's difference in `metric`, the audit, and the verdicts."""

    groups: tuple[Group, ...]
    metric: str
    baseline: str | None
    pairs: tuple[PairedDifference, ...]
    findings: tuple[Finding, ...]
    claims: tuple[MadeClaim, ...] = ()
    """Every claim that was made of the runs, removed ones included."""
    claimed_metric: str = ""
    """The number that the recipes claim something of; another one was asked for where it is not `metric`."""
    verdicts: tuple[Verdict, ...] = ()
    item_tests: tuple[ItemTest, ...] = ()
    controls: tuple[Controlled, ...] = ()
    plugin_columns: tuple[FilledColumn, ...] = ()
    """What columns of plugins say of the runs."""
    controls_command: str | None = None
    """The command that would train the controls which claims lack; None where none is needed."""
    scaling: tuple[ScalingLaw, ...] = ()
    ladder: Ladder | None = None
    budgets: tuple[PairBudgets, ...] = ()
    """The pairs of the claims, and those with the baseline, at equal tokens, training FLOPs and seconds."""

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
        plans = [plan for run in self.runs if isinstance(plan := run.experiment.get("sequential"), Mapping)]
        least = min((int(plan["least"]) for plan in plans), default=0)
        return AutoSeeds(least, max(int(plan["most"]) for plan in plans)) if plans else None

    @property
    def seeds_words(self) -> str:
        """How seeds were added and what that costs; empty where they were fixed."""
        return "" if self.seed_plan is None else spending_words(self.seed_plan)

    @property
    def families(self) -> dict[str, int]:
        """How many tests each family has that Holm's correction runs over: the claims, all pairs of the table, and,
        where there are any, its pairs with a control."""
        controls = self.control_names
        families = {"claims": max((verdict.family for verdict in self.verdicts), default=0), "pairs": 0}
        for pair in self.pairs:
            if pair.p_value is not None:
                key = "controls" if pair.first in controls or pair.second in controls else "pairs"
                families[key] = max(families.get(key, 0), pair.family)
        return families

    @property
    def families_words(self) -> str:
        """The same in a sentence; empty without either."""
        claims, pairs = self.families["claims"], self.families["pairs"]
        where = "of the table" if self.ladder is None else "of a rung"
        with_controls = self.families.get("controls", 0)
        counts = ((claims, "claim", ""), (pairs, "pair", f" {where}"), (with_controls, "pair", " with a control"))
        parts = [f"{count} {what}{'' if count == 1 else 's'}{of}" for count, what, of in counts if count]
        if not parts:
            return ""
        if max(claims, pairs, with_controls) == 1:
            return f"Families of tests: {' and '.join(parts)}, each alone: nothing is corrected for."
        intervals = "intervals are at the level at which the correction tests them"
        return f"Holm's correction runs over {', and separately over '.join(parts)}; {intervals}."

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

    def __repr__(self) -> str:
        """The headline: all of it would fill a notebook."""
        runs = sum(len(group.runs) for group in self.groups)
        return f"<Comparison of {runs} runs, {len(self.groups)} groups: {self.headline}>"

    @property
    def headline(self) -> str:
        """The result in one or two sentences; of a ladder, at its largest size and budget."""
        own = [group for group in self.groups if group.name not in self.control_names]
        if self.ladder is not None:
            own = [group for group in own if group.name in self.ladder.top]
        ranked = [group for group in own or self.groups if group.counted]
        if not ranked:
            return "No run completed: there is nothing to compare."
        best = ranked[0]
        apart = " apart from controls" if best is not next(group for group in self.groups if group.counted) else ""
        sentence = f"{best.name} has the best {self.metric_name}{apart}, {interval_text(best.interval(self.metric))}."
        if len(ranked) == 1:
            return sentence
        others = [group.name for group in ranked[1:]]
        better = [name for name in others if (pair := self.pair(best.name, name)) is None or pair.verdict == "better"]
        tied = [name for name in others if name not in better]
        pairs = [pair for name in others if (pair := self.pair(best.name, name)) is not None]
        if pairs and all(len(pair.values) < 2 for pair in pairs):
            return f"{sentence} With fewer than two seeds in common, no difference can be tested."
        if not better:
            return f"{sentence} It is not significantly different from the others."
        words = "all others" if not tied else together(better)
        rest = f" It is not significantly different from {either(tied)}." if tied else ""
        reasons = {name: found for name in better if (found := self.confounds(best.name, name))}
        if not reasons:
            return f"{sentence} It is significantly better than {words}.{rest}"
        checks = dict.fromkeys(finding.check for found in reasons.values() for finding in found)
        against = words if len(reasons) == len(better) else together(list(reasons))
        fair = [name for name in better if name not in reasons]
        fairly = f" It is significantly better than {together(fair)}." if fair else ""
        return (
            f"{sentence}{fairly} Its lead over {against} is confounded ({', '.join(checks)}): the audit gives other "
            f"reasons for it.{self._with_controls(best.name, list(reasons))}{rest}"
        )

    def _with_controls(self, best: str, others: Sequence[str]) -> str:
        """What the fairest control of each of these leads leaves of it, in sentences; empty without one."""
        sentences = ""
        for name in others:
            found = [c for c in self.controls if {c.before.first, c.before.second} == {best, name} and c.after.values]
            if found:
                fairest = min(found, key=lambda control: (len(control.confounds), -len(control.removes)))
                sentences += f" With controls: {fairest.sentence}."
        return sentences

    def frame(self) -> pd.DataFrame:
        """One row a group, best first: means of every number, intervals of the losses, and the baseline difference."""
        import pandas as pd

        return pd.DataFrame([self._row(group) for group in self.groups])

    def _row(self, group: Group) -> dict[str, Any]:
        reference = group.reference
        row: dict[str, Any] = {
            "name": group.name,
            "architecture": reference.architecture,
            "architecture_name": reference.architecture_name,
            "seeds": len(group.counted),
            "failed": group.failed,
            "learning_rate": reference.learning_rate,
        }
        for number in numbers_for(Reader.ROWS, self.runs):
            key, interval = number.key, group.interval(number.key)
            row[key] = None if interval is None else interval.mean
            if number.decimals is not None:
                row[f"{key}_low"] = None if interval is None else interval.low
                row[f"{key}_high"] = None if interval is None else interval.high
        for name, interval in benchmark_scores(group).items():
            key = name.replace(" ", ".")
            row |= {key: interval.mean, f"{key}_low": interval.low, f"{key}_high": interval.high}
        for column in self.plugin_columns:
            numbers, texts = column.numbers(group.counted), column.texts(group.counted)
            row[column.name] = t_interval(numbers).mean if numbers else ", ".join(texts) or None
        row["versus_baseline"] = self.versus_baseline(group.name)
        for entry in self.budgets:
            if group.name != self.baseline and {group.name, self.baseline} == {entry.first, entry.second}:
                row |= entry.row(group.name)
        return row

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        groups = []
        for group in self.groups:
            row = self._row(group)
            values = list(group.by_seed(self.metric).values())
            row["bootstrap"] = _bounds(bootstrap_interval(values)) if values else None
            row["learning_rates"] = {str(rate): interval.mean for rate, interval in group.rates.items()}
            row["components"] = group.reference.components
            groups.append(row)
        return to_jsonable(
            {
                "metric": self.metric,
                "baseline": self.baseline,
                "headline": self.headline,
                "audit": [finding.to_dict() for finding in self.findings],
                "groups": groups,
                "pairs": [
                    {**pair.to_dict(), "confounds": list(self.confounding_checks(pair.first, pair.second))}
                    for pair in self.pairs
                ],
                "families": self.families,
                "seeds": self.seeds_words or None,
                "hypotheses": [verdict.to_dict() for verdict in self.verdicts],
                "items": [test.to_dict() for test in self.item_tests],
                "controls": [control.to_dict() for control in self.controls],
                "budgets": [entry.to_dict() for entry in self.budgets],
                "ladder": None if self.ladder is None else self.ladder.to_dict(),
                "scaling": [law.to_dict() for law in self.scaling],
                "runs": [flat_row(run) for run in self.runs],
            }
        )


def solved_at(runs: Sequence[RunRecord], metric: str) -> float | None:
    """The accuracy from which these runs of a probe count as solved: their `probe.stop_accuracy`, 0.99 without one."""
    probes = [run.config.get("probe") for run in runs]
    if not metric.startswith(("accuracy", "best_accuracy")) or not all(isinstance(probe, Mapping) for probe in probes):
        return None
    return max((finite(probe.get("stop_accuracy")) or SOLVED for probe in probes if probe), default=None)


def _bounds(interval: Interval) -> list[float | None]:
    return [interval.low, interval.high]
