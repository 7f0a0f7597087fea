"""A comparison as data: what was measured, and what was concluded from it.

It neither prints nor judges itself: `hf_arch.analysis.compare` makes one, `hf_arch.report` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from hf_arch.analysis.budgets import PairBudgets
from hf_arch.analysis.columns import benchmark_scores
from hf_arch.analysis.controls import Controlled
from hf_arch.analysis.counts import constant_level
from hf_arch.analysis.groups import Group
from hf_arch.analysis.headline import headline
from hf_arch.analysis.item_tests import ItemTest
from hf_arch.analysis.measured import Measured
from hf_arch.analysis.power import power_words
from hf_arch.analysis.scaling_laws import ScalingLaw
from hf_arch.analysis.sequential import look_levels, spending_words
from hf_arch.analysis.stats import ALPHA, Interval, PairedDifference, bootstrap_interval, t_interval
from hf_arch.analysis.verdicts import Verdict
from hf_arch.core.files import to_jsonable
from hf_arch.runs.numbers import Reader
from hf_arch.runs.record import numbers_for
from hf_arch.runs.suite import flat_row

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Measured):
    """The answer: what was measured, with the verdicts on the claims and what stands beside them."""

    verdicts: tuple[Verdict, ...] = ()
    item_tests: tuple[ItemTest, ...] = ()
    controls: tuple[Controlled, ...] = ()
    controls_command: str | None = None
    """The command that would train the controls which claims lack; None where none is needed, or none would help."""
    controls_remove: tuple[str, ...] = ()
    """The checks behind the confounds of claims that it is for."""
    scaling: tuple[ScalingLaw, ...] = ()
    budgets: tuple[PairBudgets, ...] = ()
    """The pairs of the claims, and those with the baseline, at equal tokens, training FLOPs and seconds."""

    @classmethod
    def of(cls, measured: Measured, **concluded: Any) -> Comparison:
        """What was measured, with what was concluded from it."""
        return cls(**{each.name: getattr(measured, each.name) for each in fields(measured) if each.init}, **concluded)

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
        parts = [f"{count:,} {what}{'' if count == 1 else 's'}{of}" for count, what, of in counts if count]
        if not parts:
            return ""
        if max(claims, pairs, with_controls) == 1:
            return f"Families of tests: {' and '.join(parts)}, each alone: nothing is corrected for."
        intervals = "intervals are at the level at which the correction tests them"
        return f"Holm's correction runs over {', and separately over '.join(parts)}; {intervals}."

    def power_of(self, pair: PairedDifference) -> str:
        """What the seeds of a pair of the table can show."""
        level = constant_level(ALPHA / pair.family)
        return power_words(pair, level if self.seed_plan is None else look_levels(self.seed_plan, level))

    @property
    def headline(self) -> str:
        """The result in one or two sentences; of a ladder, at its largest size and budget."""
        return headline(self, self.controls)

    def __repr__(self) -> str:
        """The headline: all of it would fill a notebook."""
        runs = sum(len(group.runs) for group in self.groups)
        return f"<Comparison of {runs} runs, {len(self.groups)} groups: {self.headline}>"

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


def _bounds(interval: Interval) -> list[float | None]:
    return [interval.low, interval.high]
