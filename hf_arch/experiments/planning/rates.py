"""Learning rates chosen apart from the comparison that they are chosen for.

    experiment: {runs: {llama: ..., gla: ...}, learning_rates: [1.0e-3, 3.0e-3, 1.0e-2]}

Every run is trained at every rate, with seeds that the comparison does not use, and scored on the even validation rows
(of a probe: on rows of those seeds). The comparison has all seeds at the best rate, scored on the odd rows. Where the
best rate of a run is the lowest or the highest, the grid is extended once on that side, for all runs. The runs of
the sweep lie in `learning_rates/` of the results folder and enter no comparison; what they came to is recorded in every
run that uses it, under `run.learning_rates` of its experiment_config.json. `experiment.tune` samples the rates instead
(`hf_arch.experiments.execution.tune`), and is otherwise the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """The rate of one run: the mean of the metric at each rate that completed, the best of them, and whether it lies at
    the end of those that were `tried`."""

    scores: Mapping[float, float]
    rate: float
    at_edge: bool
    tried: tuple[float, ...] = ()

    @property
    def words(self) -> str:
        """The rate, whether it lies at the end of those that were tried, and their scores."""
        edge = ", at the end of the grid: the best may lie beyond it" if self.at_edge else ""
        tried = ", ".join(f"{rate:g}: {score:.4f}" for rate, score in self.scores.items())
        return f"{self.rate:g}{edge} ({tried})"


class Selection:
    """What is the same for rates of a grid and sampled ones: the runs that choose, and those that are compared after.

    names: the runs of the set for which a rate is chosen. seeds: how many, for each rate.
    """

    def __init__(self, recipe: Recipe, results_dir: Path, names: Sequence[str], seeds: int, processes: int = 1) -> None:
        self.recipe, self.processes = recipe, processes
        self.folder = results_dir / RATES_DIR
        self.names = list(names or recipe.experiment.runs or [recipe.experiment.name])
        last = recipe.experiment.last_seed
        last = int(recipe.training.get("seed", 0)) if last is None else last
        self.seeds = tuple(range(last + 1, last + 1 + seeds))

    def prepare_at(self, dry: bool = False, **changes: Any) -> PreparedSet:
        """Runs of the selection, with these changes of the `experiment`; `dry` as for `prepare_set`."""
        own = {"learning_rates": None, "tune": None, "hypothesis": "", "seeds": self.seeds}
        experiment = replace(self.recipe.experiment, **{**own, **changes})
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

    def scores(self, *trained: PreparedSet) -> dict[str, dict[float, float]]:
        """The mean of the metric at each rate at which every seed of a run completed, by name; a run without one is
        left out."""
        metric = "accuracy" if self.recipe.probe is not None else "final_val_loss"
        found: dict[str, dict[float, list[float]]] = {name: {} for name in self.names}
        for prepared in trained:
            for ready, planned in zip(prepared.runs, prepared.plan.runs, strict=True):
                record = ready.record
                if record is not None and record.status == "completed" and metric in record.numbers:
                    rate = float(planned.recipe.training["learning_rate"])
                    found[planned.declared].setdefault(rate, []).append(record.numbers[metric])
        # A rate at which a seed failed is not stable, however good the others are.
        means = {
            name: {
                rate: sum(values) / len(values)
                for rate, values in sorted(by_rate.items())
                if len(values) == len(self.seeds)
            }
            for name, by_rate in found.items()
        }
        return {name: rates for name, rates in means.items() if rates}

    def best(self, scores: Mapping[float, float]) -> float:
        """The rate with the best score."""
        sign = -1 if self.recipe.probe is not None else 1
        return min(scores, key=lambda rate: sign * scores[rate])

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
        compared = replace(experiment, learning_rates=None, tune=None, runs=runs)
        return replace(self.recipe, experiment=compared), facts

    def budget(self, choice: Choice) -> dict[str, Any]:
        """What a run records of the rates that were tried for it."""
        return {"grid": list(choice.tried)}

    def facts(self, choice: Choice) -> dict[str, Any]:
        """What a run records of the sweep: the rates, the mean score at each, the choice, whether that lies at the end
        of the rates, and the rows and seeds of the choice and of the comparison."""
        text = self.recipe.probe is None
        return {
            **self.budget(choice),
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


class RateSweep(Selection):
    """The sweep of one set, as far as it has come; everything is read from the runs' folders, so it can be resumed."""

    def __init__(self, recipe: Recipe, results_dir: Path, processes: int = 1) -> None:
        options = recipe.experiment.learning_rates
        assert options is not None
        for key, _value in recipe.overrides:
            if key in (RATE, "evaluation.rows"):
                raise ConfigError(f"override {key}: the recipe chooses it by experiment.learning_rates")
        super().__init__(recipe, results_dir, options.runs, options.seeds, processes)
        self.grid = tuple(sorted(options.rates))
        self.extended: tuple[float, ...] = ()

    def prepare(self, dry: bool = False) -> PreparedSet:
        """The runs of the sweep over the grid as it is; `dry` as for `prepare_set`."""
        return self.prepare_at(dry, matrix={RATE: list(self.grid)})

    def choices(self, prepared: PreparedSet) -> dict[str, Choice]:
        """The best rate of each run with a completed rate, by name."""
        found = {}
        for name, means in self.scores(prepared).items():
            best = self.best(means)
            found[name] = Choice(means, best, best in (self.grid[0], self.grid[-1]), self.grid)
        return found

    def budget(self, choice: Choice) -> dict[str, Any]:
        """The grid, and what was added to it."""
        return {**super().budget(choice), "extended": list(self.extended)}

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
