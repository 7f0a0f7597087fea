"""Learning rates sampled by Optuna instead of a grid, with an equal budget for every run of the set.

    experiment: {runs: {llama: ..., gla: ...}, tune: {low: 1.0e-4, high: 3.0e-2, trials: 8}}

Trial after trial, each run of the set gets its next rate; as with a grid (`hf_arch.experiments.planning.rates`), the
trials have a seed and rows that the comparison does not use, and the comparison has all seeds at the best rate. Where
the best rate of a run is the lowest or the highest that was tried, every run gets one trial more, these beyond that
end. The studies lie in the results folder (`tune.db`): started again, finished trials are kept, an unfinished one is
trained on at the same rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hf_arch.core.errors import ConfigError
from hf_arch.experiments.execution.leases import Leases
from hf_arch.experiments.execution.rates import after_selection
from hf_arch.experiments.execution.registering import register_claims
from hf_arch.experiments.execution.runner import RunOptions, TrainedSet, processes_per_run, train_set
from hf_arch.experiments.execution.worker import LEASES_DIR
from hf_arch.experiments.planning.sampling import RATE, Sampling
from hf_arch.recipe.recipe import Recipe
from hf_arch.recipe.tune import TuneOptions

STUDIES_FILE = "tune.db"


def train_tuned(
    recipe: Recipe, results_dir: Path, options: RunOptions, own: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Recipe, dict[str, dict[str, Any]]] | TrainedSet:
    """Trains every trial; the set at the best rates, and what its runs record, as `train_rates` has it; or the last
    trial with what failed in it, where a run has no rate that completed.

    Raises:
        ConfigError: Optuna is not installed, the rate is overridden, or another process tunes in this folder.
    """
    tune = recipe.experiment.tune
    assert tune is not None
    for key, _value in recipe.overrides:
        if key in (f"training.{RATE}", "evaluation.rows"):
            raise ConfigError(f"override {key}: the recipe samples it by experiment.tune; override that instead")
    sampling = Sampling(recipe, results_dir, processes_per_run(options))
    studies = _Studies(sampling.names, tune, results_dir, recipe)
    lease = Leases(results_dir / LEASES_DIR).take("tune")
    if lease is None:
        raise ConfigError(
            f"experiment.tune: another process is already tuning in {results_dir}; --workers trains several runs"
        )
    trained = []
    with lease:
        register_claims(recipe, sampling.names, results_dir)
        for trial in range(tune.trials):
            trained.append(sampling.prepare(studies.rates(trial)))
            failed = train_set(trained[-1], sampling.folder, options)
            studies.record(trial, sampling.scores(trained[-1]))
        choices = sampling.choices(trained)
        if set(choices) == set(sampling.names) and any(choice.at_edge for choice in choices.values()):
            trained.append(sampling.prepare({name: sampling.further(choice) for name, choice in choices.items()}))
            failed = train_set(trained[-1], sampling.folder, options)
            choices = sampling.choices(trained)
    return after_selection(sampling, choices, TrainedSet(trained[-1], failed), own)


class _Studies:
    """One Optuna study a run of the set, in one file."""

    def __init__(self, names: list[str], tune: TuneOptions, results_dir: Path, recipe: Recipe) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigError("experiment.tune: needs Optuna; install it by: pip install 'hf-arch[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.tune = optuna, tune
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

    def record(self, trial: int, scores: Mapping[str, Mapping[float, float]]) -> None:
        """Gives each study the score of its run in this trial; a trial without one has failed."""
        for name, study in self.studies.items():
            if found := list(scores.get(name, {}).values()):
                study.tell(trial, found[0], skip_if_finished=True)
            else:
                study.tell(trial, state=self.optuna.trial.TrialState.FAIL, skip_if_finished=True)
