"""Learning rates sampled by Optuna instead of a grid, with an equal budget for every run of the set.

    experiment: {runs: {llama: ..., gla: ...}, tune: {low: 1.0e-4, high: 3.0e-2, trials: 8}}

Trial after trial, each run of the set gets its next rate, and the set is trained with these; the score of a trial is
the mean over its seeds. All trials of a run have one name in the comparison: the best rate counts, the others are its
curve. The studies lie in the results folder (`tune.db`): started again, finished trials are kept, an unfinished one
is trained on at the same rate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hf_arch.core.errors import ConfigError
from hf_arch.experiments.execution.leases import Leases
from hf_arch.experiments.execution.registering import register_claims
from hf_arch.experiments.execution.runner import RunOptions, TrainedSet, processes_per_run, train_set
from hf_arch.experiments.execution.worker import LEASES_DIR
from hf_arch.experiments.planning.prepare import PreparedSet, ReadyRun, prepare_set
from hf_arch.recipe.recipe import Recipe
from hf_arch.recipe.tune import TuneOptions

STUDIES_FILE = "tune.db"
RATE = "learning_rate"


def train_tuned(recipe: Recipe, results_dir: Path, options: RunOptions) -> TrainedSet:
    """Trains every trial; returns the runs of all trials with the last plan, and those that did not complete.

    Raises:
        ConfigError: Optuna is not installed, the rate is overridden, or another process tunes in this folder.
    """
    tune = recipe.experiment.tune
    assert tune is not None
    if any(key == f"training.{RATE}" for key, _value in recipe.overrides):
        raise ConfigError(f"override training.{RATE}: the recipe samples it by experiment.tune; override that instead")
    studies = _Studies(list(recipe.experiment.runs) or [recipe.experiment.name], tune, results_dir, recipe)
    lease = Leases(results_dir / LEASES_DIR).take("tune")
    if lease is None:
        raise ConfigError(
            f"experiment.tune: another process is already tuning in {results_dir}; --workers trains several runs"
        )
    runs: list[ReadyRun] = []
    failed: list[ReadyRun] = []
    with lease:
        for trial in range(tune.trials):
            prepared = prepare_set(_with_rates(recipe, studies.rates(trial)), results_dir, processes_per_run(options))
            register_claims(recipe, prepared.plan.names, results_dir)
            failed += train_set(prepared, results_dir, options)
            studies.record(trial, prepared)
            runs += prepared.runs
    return TrainedSet(PreparedSet(runs, prepared.plan, prepared.tokenizers), failed)


def _with_rates(recipe: Recipe, rates: dict[str, float]) -> Recipe:
    """The set with a learning rate a run."""
    experiment = recipe.experiment
    changes = experiment.runs or {experiment.name: {}}
    runs: dict[str, dict[str, Any] | None] = {
        name: {**(given or {}), "training": {**((given or {}).get("training") or {}), RATE: rates[name]}}
        for name, given in changes.items()
    }
    return replace(recipe, experiment=replace(experiment, runs=runs))


class _Studies:
    """One Optuna study a run of the set, in one file."""

    def __init__(self, names: list[str], tune: TuneOptions, results_dir: Path, recipe: Recipe) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigError("experiment.tune: needs Optuna; install it by: pip install 'hf-arch[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.tune = optuna, tune
        self.metric = "final_val_loss" if recipe.probe is None else "accuracy"
        direction: Literal["minimize", "maximize"] = "minimize" if recipe.probe is None else "maximize"
        results_dir.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{(results_dir / STUDIES_FILE).resolve()}"
        self.studies = {
            name: optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
            for name in names
        }

    def rates(self, trial: int) -> dict[str, float]:
        """The rate of each run in this trial: the stored one, or a new one, which depends on the trials before."""
        return {name: self._rate(study, trial) for name, study in self.studies.items()}

    def _rate(self, study: Any, trial: int) -> float:
        known = study.get_trials(deepcopy=False)
        if trial < len(known):
            return float(f"{known[trial].params[RATE]:.3g}")
        # Startup trials are random: without an own seed each time, all runs and restarts would not repeat themselves.
        study.sampler = self.optuna.samplers.TPESampler(seed=trial, n_startup_trials=min(4, self.tune.trials))
        spread = self.optuna.distributions.FloatDistribution(self.tune.low, self.tune.high, log=True)
        return float(f"{study.ask({RATE: spread}).params[RATE]:.3g}")

    def record(self, trial: int, prepared: PreparedSet) -> None:
        """Gives each study the mean of its runs; a trial without a completed run has failed."""
        for name, study in self.studies.items():
            runs = [run for run, plan in zip(prepared.runs, prepared.plan.runs, strict=True) if plan.declared == name]
            scores = [score for run in runs if (score := self._score(run)) is not None]
            if scores:
                study.tell(trial, sum(scores) / len(scores), skip_if_finished=True)
            else:
                study.tell(trial, state=self.optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def _score(self, run: ReadyRun) -> float | None:
        record = run.record
        return record.numbers.get(self.metric) if record is not None and record.status == "completed" else None
