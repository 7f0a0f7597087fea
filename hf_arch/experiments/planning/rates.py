"""Learning rates chosen apart from the comparison that they are chosen for.

    experiment: {runs: {llama: ..., gla: ...}, learning_rates: [1.0e-3, 3.0e-3, 1.0e-2]}

Every run is trained at every rate, with seeds that the comparison does not use, and scored on the even validation rows
(of a probe: on rows of those seeds). The comparison has all seeds at the best rate, scored on the odd rows. Where the
best rate of a run is the lowest or the highest, the grid is extended once on that side, for all runs. The runs of
the sweep lie in `learning_rates/` of the results folder and enter no comparison; what they came to is recorded in every
run that uses it, under `run.learning_rates` of its experiment_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.experiments.planning.prepare import PreparedSet, prepare_set
from hf_arch.recipe.dotted import set_dotted
from hf_arch.recipe.recipe import Recipe

RATE = "training.learning_rate"
RATES_DIR = "learning_rates"
SELECTION = {"role": "selection"}
"""What the runs of a sweep record of themselves; `hf_arch.runs.suite` leaves them out of comparisons."""


@dataclass(frozen=True)
class Choice:
    """The rate of one run: the mean of the metric at each rate that completed, and the best of them."""

    scores: Mapping[float, float]
    rate: float
    at_edge: bool


class RateSweep:
    """The sweep of one set, as far as it has come; everything is read from the runs' folders, so it can be resumed."""

    def __init__(self, recipe: Recipe, results_dir: Path, processes: int = 1) -> None:
        options = recipe.experiment.learning_rates
        assert options is not None
        for key, _value in recipe.overrides:
            if key in (RATE, "evaluation.rows"):
                raise ConfigError(f"override {key}: the recipe chooses it by experiment.learning_rates")
        self.recipe, self.options, self.processes = recipe, options, processes
        self.folder = results_dir / RATES_DIR
        self.names = list(options.runs or recipe.experiment.runs or [recipe.experiment.name])
        self.grid = tuple(sorted(options.rates))
        self.extended: tuple[float, ...] = ()
        last = recipe.experiment.last_seed
        last = int(recipe.training.get("seed", 0)) if last is None else last
        self.seeds = tuple(range(last + 1, last + 1 + options.seeds))

    def prepare(self, dry: bool = False) -> PreparedSet:
        """The runs of the sweep over the grid as it is; `dry` as for `prepare_set`."""
        experiment = replace(
            self.recipe.experiment,
            learning_rates=None,
            hypothesis="",
            seeds=self.seeds,
            matrix={RATE: list(self.grid)},
        )
        recipe = replace(self._scored_on("selection"), experiment=experiment)
        facts = dict.fromkeys(experiment.runs or [experiment.name], SELECTION)
        prepared = prepare_set(recipe, self.folder, self.processes, facts, dry=dry)
        kept = [
            (ready, planned)
            for ready, planned in zip(prepared.runs, prepared.plan.runs, strict=True)
            if planned.declared in self.names
        ]
        plan = replace(prepared.plan, runs=[planned for _ready, planned in kept])
        return replace(prepared, runs=[ready for ready, _planned in kept], plan=plan)

    def choices(self, prepared: PreparedSet) -> dict[str, Choice]:
        """The best rate of each run with a completed rate, by name."""
        metric, sign = ("accuracy", -1) if self.recipe.probe is not None else ("final_val_loss", 1)
        scores: dict[str, dict[float, list[float]]] = {name: {} for name in self.names}
        for ready, planned in zip(prepared.runs, prepared.plan.runs, strict=True):
            record = ready.record
            if record is not None and record.status == "completed" and metric in record.numbers:
                rate = float(planned.recipe.training["learning_rate"])
                scores[planned.declared].setdefault(rate, []).append(record.numbers[metric])
        found = {}
        for name, by_rate in scores.items():
            # A rate at which a seed failed is not stable, however good the others are.
            means = {
                rate: sum(values) / len(values)
                for rate, values in sorted(by_rate.items())
                if len(values) == len(self.seeds)
            }
            if means:
                best = min(means, key=lambda rate: sign * means[rate])
                found[name] = Choice(means, best, best in (self.grid[0], self.grid[-1]))
        return found

    def extend(self, choices: Mapping[str, Choice]) -> bool:
        """Extends the grid where a best rate lies at its end, once; whether it did."""
        if self.extended:
            return False
        best = {choice.rate for choice in choices.values()}
        added = []
        if self.grid[0] in best:
            added.append(self.grid[0] ** 2 / self.grid[1])
        if self.grid[-1] in best:
            added.append(self.grid[-1] ** 2 / self.grid[-2])
        self.extended = tuple(float(f"{rate:.3g}") for rate in added)
        self.grid = tuple(sorted({*self.grid, *self.extended}))
        return bool(self.extended)

    def compared(
        self, choices: Mapping[str, Choice], own: Mapping[str, Mapping[str, Any]] | None = None
    ) -> tuple[Recipe, dict[str, dict[str, Any]]]:
        """The set that is compared: each run at its rate, on the other rows; and what each records: its `own` facts,
        and those of the sweep.

        A run that is not chosen for yet keeps the recipe's own rate."""
        experiment = self.recipe.experiment
        runs: dict[str, dict[str, Any] | None] = {}
        facts: dict[str, dict[str, Any]] = {name: dict(values) for name, values in (own or {}).items()}
        for name, given in (experiment.runs or {experiment.name: {}}).items():
            changes: dict[str, Any] = dict(given or {})
            if name in self.names:
                if self.recipe.probe is None:
                    changes = set_dotted(changes, "evaluation.rows", "claim")
                if name in choices:
                    changes = set_dotted(changes, RATE, choices[name].rate)
                    facts[name] = {**facts.get(name, {}), "learning_rates": self.facts(choices[name])}
            runs[name] = changes
        return replace(self.recipe, experiment=replace(experiment, learning_rates=None, runs=runs)), facts

    def facts(self, choice: Choice) -> dict[str, Any]:
        """What a run records of the sweep: the grid, what was added to it, the mean score at each rate, the choice,
        whether that lies at the end of the grid, and the rows and seeds of the choice and of the comparison."""
        text = self.recipe.probe is None
        return {
            "grid": list(self.grid),
            "extended": list(self.extended),
            "scores": {f"{rate:g}": score for rate, score in choice.scores.items()},
            "chosen": choice.rate,
            "at_edge": choice.at_edge,
            "seeds": list(self.seeds),
            "selection_rows": "even" if text else f"of seeds {', '.join(map(str, self.seeds))}",
            "claim_rows": "odd" if text else "of the compared seeds",
        }

    def _scored_on(self, part: Any) -> Recipe:
        if self.recipe.probe is not None:
            return self.recipe
        return replace(self.recipe, evaluation=replace(self.recipe.evaluation, rows=part))
