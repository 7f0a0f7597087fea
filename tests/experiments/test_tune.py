"""Sampled learning rates: an equal budget for every run, better than chance, kept and gone on with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_json
from hf_arch.experiments.execution import runner
from hf_arch.experiments.execution.tune import train_tuned
from hf_arch.recipe.recipe import Recipe, read_recipe
from hf_arch.runs.suite import find_runs

pytest.importorskip("optuna", reason="the sampler is the extra `optuna`")
BEST = {"llama": 1e-2, "gla": 1e-3}


def recipe(trials: int, *overrides: str) -> Recipe:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "ffn": "none"}
    values: dict[str, Any] = {
        "model": sizes,
        "probe": {"task": "parity"},
        "training": {"max_steps": 1},
        "experiment": {
            "name": "set",
            "seeds": 2,
            "runs": {name: {"model.architecture": name} for name in BEST},
            "tune": {"low": 1e-5, "high": 1.0, "trials": trials},
        },
    }
    return read_recipe(values, overrides)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of training: an accuracy that is best at a rate of its own, told by the name of what was trained."""
    names: list[str] = []

    def train(prepared: runner.PreparedSet, results_dir: Path, options: runner.RunOptions) -> list[Any]:
        failed = []
        for run in prepared.runs:
            if run.status == "completed":
                continue
            rate, seed = run.config["training"]["learning_rate"], run.config["training"]["seed"]
            names.append(f"{run.name} {seed} {rate}")
            far = abs(math.log10(rate / BEST[run.name]))
            status = "failed" if far > 3.5 else "completed"
            accuracy = 1 - 0.1 * far - 0.001 * seed
            results = {
                "status": status,
                "seed": seed,
                "learning_rate": rate,
                "accuracy": accuracy,
                "final_val_loss": far,
            }
            write_json(run.folder / "experiment_config.json", run.config)
            write_json(run.folder / "results.json", {"name": run.name, **results})
            failed += [run] if status == "failed" else []
        return failed

    monkeypatch.setattr("hf_arch.experiments.execution.tune.train_set", train)
    return names


def test_every_run_has_the_same_budget_and_the_best_rate_counts(tmp_path: Path, trained: list[str]) -> None:
    trained = train_tuned(recipe(trials=14), tmp_path, runner.RunOptions())
    prepared, failed = trained.prepared, trained.failed
    assert len(prepared.runs) == 14 * 2 * 2 == len(set(trained)) == len(trained)
    assert len(failed) == sum(run.status == "failed" for run in prepared.runs)
    comparison = compare_runs(tmp_path)
    assert {group.name for group in comparison.groups} == set(BEST)
    for group in comparison.groups:
        best = group.reference.learning_rate
        assert best is not None and abs(math.log10(best / BEST[group.name])) < 0.5
        assert len({run.learning_rate for run in group.runs}) == 14
        assert best in group.rates and len(group.counted) == 2
    budget = next(finding for finding in comparison.findings if "learning-rate budget" in finding.sentence)
    assert budget.severity == "ok" and "sampled from 1e-05 to 1" in budget.sentence


def test_it_goes_on_where_it_was_and_repeats_itself(tmp_path: Path, trained: list[str]) -> None:
    train_tuned(recipe(trials=4), tmp_path / "whole", runner.RunOptions())
    whole = sorted(trained)
    trained.clear()
    train_tuned(recipe(trials=2), tmp_path / "parts", runner.RunOptions())
    train_tuned(recipe(trials=4), tmp_path / "parts", runner.RunOptions())
    assert sorted(trained) == whole  # nothing twice, and the same rates
    assert len(find_runs(tmp_path / "parts")) == len(whole)


def test_mistakes_are_one_line_and_write_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    with pytest.raises(ConfigError, match="the recipe samples it"):
        train_tuned(recipe(2, "training.learning_rate=1"), folder, runner.RunOptions())
    for tune, expected in (
        ({"low": 1.0, "high": 0.1}, "experiment.tune.low"),
        ({"low": 0.1, "high": 1.0, "trials": 0}, "experiment.tune.trials"),
        ({"low": 0.1, "high": 1.0, "trails": 3}, "nearest: 'trials'"),
    ):
        with pytest.raises(ConfigError, match=expected):
            read_recipe({"model": {"architecture": "llama"}, "experiment": {"tune": tune}})
    with pytest.raises(ConfigError, match=r"not together with experiment\.matrix"):
        read_recipe(
            {
                "model": {"architecture": "llama"},
                "experiment": {"tune": {"low": 0.1, "high": 1.0}, "matrix": {"training.learning_rate": [1]}},
            }
        )
    assert not folder.exists()
