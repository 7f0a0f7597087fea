"""Comparison of runs: groups of seeds by name, statistics against a baseline and over all pairs, and the audit.

    from hf_arch.experiments import compare
    from hf_arch.experiments.comparison import compare_runs
    compare("results/quickstart")                    # a pandas DataFrame, one row a group, best first
    compare_runs("results/quickstart").print()       # audit, table and statements on the terminal

Runs of one name that differ only in the seed are one group; a name that folders give to different models or settings is
told apart by the folder. Where a group tried several learning rates, the rate with the best mean is its row and the
others are its curve. Failed runs stay visible and enter no number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.experiments import store
from hf_arch.experiments.audit import Finding, audit
from hf_arch.experiments.columns import interval_text
from hf_arch.experiments.run_settings import shared_settings
from hf_arch.experiments.stats import Interval, PairedDifference, all_pairs, bootstrap_interval, t_interval
from hf_arch.experiments.store import NUMBERS, RunResult, flat_row, to_jsonable
from hf_arch.experiments.verdicts import Verdict, judge

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

LOSS = "final_val_loss"
HIGHER_IS_BETTER = ("accuracy", "train_tokens_per_second", "decode_tokens_per_second", "mfu")
INTERVAL_KEYS = ("final_train_loss", "final_val_loss", "final_val_perplexity", "bits_per_byte", "accuracy")
BASELINE_ARCHITECTURES = ("gpt2", "llama")
METRIC_NAMES = {
    "final_val_loss": "validation loss",
    "final_train_loss": "training loss",
    "final_val_perplexity": "validation perplexity",
    "bits_per_byte": "bits per byte",
}


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one name. `counted` (one a seed, at the best learning rate) are those whose numbers are reported."""

    name: str
    runs: tuple[RunResult, ...]
    counted: tuple[RunResult, ...]
    rates: dict[float, Interval] = field(default_factory=dict)

    @property
    def reference(self) -> RunResult:
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


@dataclass(frozen=True, eq=False)
class Comparison:
    """The answer: groups ordered best first, every pair's difference in `metric`, the audit, and the verdicts."""

    groups: tuple[Group, ...]
    metric: str
    baseline: str | None
    pairs: tuple[PairedDifference, ...]
    findings: tuple[Finding, ...]
    hypotheses: tuple[str, ...]

    @property
    def runs(self) -> list[RunResult]:
        """Every run, failed ones included."""
        return [run for group in self.groups for run in group.runs]

    @property
    def lower_is_better(self) -> bool:
        """Direction of the metric."""
        return self.metric not in HIGHER_IS_BETTER

    @property
    def metric_name(self) -> str:
        """The metric in words."""
        return METRIC_NAMES.get(self.metric, self.metric.replace("_", " "))

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

    def versus_baseline(self, name: str) -> str:
        """In words: how `name` stands to the baseline."""
        if name == self.baseline:
            return "baseline"
        pair = self.pair(name, self.baseline) if self.baseline else None
        return "" if pair is None else pair.words

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """What the numbers say about each hypothesis."""
        return [verdict for hypothesis in self.hypotheses for verdict in judge(hypothesis, self)]

    @property
    def headline(self) -> str:
        """The result in one or two sentences."""
        ranked = [group for group in self.groups if group.counted]
        if not ranked:
            return "No run completed: there is nothing to compare."
        best = ranked[0]
        sentence = f"{best.name} has the best {self.metric_name}, {interval_text(best.interval(self.metric))}."
        tied = [
            group.name for group in ranked[1:]
            if (pair := self.pair(best.name, group.name)) is not None and pair.verdict != "better"
        ]  # fmt: skip
        if len(ranked) == 1:
            return sentence
        if not tied:
            return f"{sentence} It is better than every other one beyond chance."
        if len(tied) == len(ranked) - 1:
            return f"{sentence} It cannot be told from any other one."
        return f"{sentence} It cannot be told from {', '.join(tied)}."

    def frame(self) -> pd.DataFrame:
        """One row a group, best first: means of every number, intervals of the losses, and the baseline difference."""
        import pandas as pd

        return pd.DataFrame([self._row(group) for group in self.groups])

    def runs_frame(self) -> pd.DataFrame:
        """One row a run, failed ones included."""
        import pandas as pd

        return pd.DataFrame([flat_row(run) for run in self.runs])

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
        for key in NUMBERS:
            interval = group.interval(key)
            row[key] = None if interval is None else interval.mean
            if key in INTERVAL_KEYS:
                row[f"{key}_low"] = None if interval is None else interval.low
                row[f"{key}_high"] = None if interval is None else interval.high
        row["versus_baseline"] = self.versus_baseline(group.name)
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
                "pairs": [pair.to_dict() for pair in self.pairs],
                "hypotheses": [verdict.to_dict() for verdict in self.verdicts],
                "runs": [flat_row(run) for run in self.runs],
            }
        )

    def print(self, console: Console | None = None) -> None:
        """Prints audit, table and statements, to any width of terminal."""
        from hf_arch.experiments.table import print_comparison

        print_comparison(self, console)

    def to_text(self, width: int = 120) -> str:
        """The same as plain text."""
        import io

        from rich.console import Console

        buffer = io.StringIO()
        self.print(Console(file=buffer, width=width, color_system=None, highlight=False))
        return buffer.getvalue()


def compare_runs(
    source: str | Path | Sequence[str | Path | RunResult], baseline: str | None = None, metric: str | None = None
) -> Comparison:
    """Reads, groups, tests and audits runs.

    `metric` is a measured number of results.json; by default the validation loss, the accuracy of probes, or bits per
    byte where the tokenizers differ (a loss per token means nothing then). `baseline` is a group's name; by default the
    run that the recipe names or lists first. ConfigError for a name that does not exist.
    """
    runs = _told_apart(store.load_runs(source))
    if metric is None:
        metric = _default_metric(runs)
    elif metric not in NUMBERS:
        raise choice_error("metric", metric, NUMBERS)
    names = list(dict.fromkeys(run.name for run in runs))
    groups = [_group(name, [run for run in runs if run.name == name], metric) for name in names]
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    groups.sort(key=lambda group: (not group.by_seed(metric), sign * (group.mean(metric) or 0.0)))
    if baseline is None:
        baseline = _default_baseline(runs, groups)
    elif baseline not in names:
        raise choice_error("baseline", baseline, names)
    return Comparison(
        groups=tuple(groups),
        metric=metric,
        baseline=baseline,
        pairs=tuple(all_pairs({group.name: group.by_seed(metric) for group in groups}, sign == 1)),
        findings=tuple(audit(runs)),
        hypotheses=tuple(store.hypotheses(runs)),
    )


def compare_command(
    runs: list[str], latest: int | None, results_dir: str | None, csv: str | None, as_json: bool
) -> int:
    """`hf-arch compare`: prints the comparison, and returns the exit code. ConfigError for a user's mistake."""
    if runs and latest is not None:
        raise ConfigError("compare: RUN... and --latest were both given; allowed: one of them")
    if latest is not None:
        comparison = compare_runs(store.latest(results_dir or "results", latest))
    elif runs:
        comparison = compare_runs([_resolve(run, results_dir) for run in runs])
    elif results_dir is not None:
        comparison = compare_runs(results_dir)
    else:
        raise ConfigError("compare: no runs given; name run or results folders, or give --latest N or --results-dir D")
    if csv is not None:
        store.write_text_atomic(csv, comparison.frame().to_csv(index=False))
    if as_json:
        sys.stdout.write(json.dumps(comparison.to_dict(), indent=2, allow_nan=False) + "\n")
    else:
        comparison.print()
    return 0


def _resolve(run: str, results_dir: str | None) -> Path:
    """A run or suite folder as given, or by its name inside the results folder."""
    candidates = [Path(run), *([Path(results_dir) / run] if results_dir else [])]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ConfigError(f"run: {run!r} is no folder (looked for {', '.join(str(candidate) for candidate in candidates)})")


def _told_apart(runs: list[RunResult]) -> list[RunResult]:
    """The runs, those of a name that means different things in several folders renamed to `folder/name`."""
    meanings: dict[str, set[str]] = {}
    folders: dict[str, set[Path]] = {}
    for run in runs:
        meanings.setdefault(run.name, set()).add(_meaning(run))
        folders.setdefault(run.name, set()).add(run.path.resolve().parent)
    ambiguous = {name for name in meanings if len(meanings[name]) > 1 and len(folders[name]) > 1}
    named = {folder.name for name in ambiguous for folder in folders[name]}
    told_by_name = len(named) == len({folder for name in ambiguous for folder in folders[name]})

    def told_apart(run: RunResult) -> RunResult:
        folder = run.path.resolve().parent
        return replace(run, name=f"{folder.name if told_by_name else folder}/{run.name}")

    return [told_apart(run) if run.name in ambiguous else run for run in runs]


def _meaning(run: RunResult) -> str:
    model = {key: value for key, value in (run.config.get("model") or {}).items() if key != "plugins"}
    return json.dumps([model, shared_settings(run)], sort_keys=True, default=str)


def _group(name: str, runs: list[RunResult], metric: str) -> Group:
    """One group: a run a seed at each learning rate (the newest), then the rate with most seeds and the best mean."""
    by_rate: dict[float, dict[int, RunResult]] = {}
    for run in sorted(runs, key=lambda run: run.modified):
        if run.completed and metric in run.numbers:
            by_rate.setdefault(run.learning_rate or 0.0, {})[run.seed or 0] = run
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    rates = {
        rate: t_interval([run.numbers[metric] for run in seeds.values()]) for rate, seeds in sorted(by_rate.items())
    }
    if not rates:
        return Group(name, tuple(runs), ())
    best = min(rates, key=lambda rate: (-rates[rate].n, sign * rates[rate].mean))
    counted = tuple(run for _seed, run in sorted(by_rate[best].items()))
    return Group(name, tuple(runs), counted, rates)


def _default_metric(runs: list[RunResult]) -> str:
    completed = [run for run in runs if run.completed]
    if completed and all("accuracy" in run.numbers for run in completed):
        return "accuracy"
    tokenizers = {run.results.get("tokenizer_fingerprint") for run in completed}
    return "bits_per_byte" if len(tokenizers) > 1 and all("bits_per_byte" in run.numbers for run in completed) else LOSS


def _default_baseline(runs: list[RunResult], groups: list[Group]) -> str | None:
    """The recipe's reference or first run, else the plainest architecture, else the first name with most seeds."""
    seeds = {group.name: len(group.counted) for group in groups}
    names = {name for name, count in seeds.items() if count}
    if len(names) < 2:
        return None
    for run in runs:
        match, declared = run.experiment.get("match"), run.experiment.get("runs")
        wanted = [run.experiment.get("baseline"), match.get("reference") if isinstance(match, dict) else None]
        wanted += list(declared) if isinstance(declared, dict) else []
        for name in wanted:
            for told_apart in (name, f"{run.name.rpartition('/')[0]}/{name}"):
                if told_apart in names:
                    return str(told_apart)
    for architecture in BASELINE_ARCHITECTURES:
        for group in groups:
            if group.name in names and group.reference.architecture == architecture:
                return group.name
    return min(names, key=lambda name: (-seeds[name], name))


def _bounds(interval: Interval) -> list[float | None]:
    return [interval.low, interval.high]
