"""Sampled learning rates: the trials of `experiment.tune`, and what is chosen from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_arch.experiments.planning.prepare import PreparedSet
from hf_arch.experiments.planning.rates import Choice, Selection
from hf_arch.recipe.dotted import set_dotted
from hf_arch.recipe.recipe import Recipe

RATE = "learning_rate"
LEAST_STEP = 2.0
"""By what factor a trial beyond the end of the rates goes further, at least."""


class Sampling(Selection):
    """The trials of a set whose rates are sampled."""

    def __init__(self, recipe: Recipe, results_dir: Path, processes: int = 1) -> None:
        super().__init__(recipe, results_dir, (), 1, processes)

    def prepare(self, rates: Mapping[str, float], dry: bool = False) -> PreparedSet:
        """One trial: each run at a rate of its own."""
        experiment = self.recipe.experiment
        changes = experiment.runs or {experiment.name: {}}
        runs = {name: set_dotted(dict(given or {}), f"training.{RATE}", rates[name]) for name, given in changes.items()}
        return self.prepare_at(dry, runs=runs)

    def choices(self, trained: Sequence[PreparedSet]) -> dict[str, Choice]:
        """The best rate of each run with a completed trial, by name. A rate that failed was tried all the same."""
        found = {}
        for name, means in self.scores(*trained).items():
            runs = [run for prepared in trained for run in prepared.plan.runs if run.declared == name]
            tried = tuple(sorted({float(run.recipe.training[RATE]) for run in runs}))
            best = self.best(means)
            found[name] = Choice(means, best, best in (tried[0], tried[-1]), tried)
        return found

    def further(self, choice: Choice) -> float:
        """One rate more: beyond the end at which the best lies, else between the best and the better of its
        neighbours."""
        rates = choice.tried
        place = rates.index(choice.rate)
        beside = [rates[index] for index in (place - 1, place + 1) if 0 <= index < len(rates)]
        if not choice.at_edge:
            scores = {rate: choice.scores[rate] for rate in beside if rate in choice.scores}
            return float(f"{(choice.rate * (self.best(scores) if scores else beside[0])) ** 0.5:.3g}")
        step = max([*(max(rate / choice.rate, choice.rate / rate) for rate in beside), LEAST_STEP])
        return float(f"{choice.rate * step if place else choice.rate / step:.3g}")

    def budget(self, choice: Choice) -> dict[str, Any]:
        """The rates that were tried, and what they were sampled from."""
        tune = self.recipe.experiment.tune
        assert tune is not None
        sampled = {"low": tune.low, "high": tune.high, "trials": tune.trials}
        return {"grid": list(choice.tried), "sampled": sampled}
