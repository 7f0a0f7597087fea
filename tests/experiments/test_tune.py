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
from hf_arch.experiments.planning.prepare import PreparedSet, prepare_set
from hf_arch.recipe.recipe import Recipe, read_recipe

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


def write_results(prepared: PreparedSet, names: list[str]) -> list[Any]:
    """In place of training: an accuracy that is best at a rate of its own."""
    failed = []
    for run in prepared.runs:
        if run.status == "completed":
            continue
        rate, seed = run.config["training"]["learning_rate"], run.config["training"]["seed"]
        base = run.config["model"]["architecture"]
        names.append(f"{base} {seed} {rate}")
        far = abs(math.log10(rate / BEST[base]))
        status = "failed" if far > 3.5 else "completed"
        results = {
            "name": run.name,
            "status": status,
            "seed": seed,
            "learning_rate": rate,
            "accuracy": 1 - 0.1 * far - 0.001 * seed,
            "final_val_loss": far,
        }
        write_json(run.folder / "experiment_config.json", run.config)
        write_json(run.folder / "results.json", results)
        failed += [run] if status == "failed" else []
    return failed


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was trained, each as `name seed rate`."""
    names: list[str] = []
    monkeypatch.setattr(
        "hf_arch.experiments.execution.tune.train_set", lambda prepared, *rest: write_results(prepared, names)
    )
    return names


def tuned(asked: Recipe, folder: Path) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """The set at the rates that its trials chose, and what its runs record."""
    found = train_tuned(asked, folder, runner.RunOptions())
    assert isinstance(found, tuple)
    return found


def test_every_run_has_the_same_budget_and_the_best_rate_is_compared(tmp_path: Path, trained: list[str]) -> None:
    compared, facts = tuned(recipe(trials=14), tmp_path)
    counts = {name: sum(entry.startswith(f"{name} ") for entry in trained) for name in BEST}
    assert len(set(trained)) == len(trained) and len(set(counts.values())) == 1 and counts["gla"] in (14, 15)
    assert {entry.split()[1] for entry in trained} == {"3"}  # one seed, which the comparison does not have
    assert compared.experiment.tune is None and list(compared.experiment.seeds) == [1, 2]
    for name, best in BEST.items():
        changes = compared.experiment.runs[name]
        assert changes is not None
        rate, swept = changes["training"]["learning_rate"], facts[name]["learning_rates"]
        assert abs(math.log10(rate / best)) < 0.5 and rate == swept["chosen"] and not swept["at_edge"]
        assert swept["sampled"] == {"low": 1e-5, "high": 1.0, "trials": 14} and swept["seeds"] == [3]


def test_what_was_tuned_is_no_confound(tmp_path: Path, trained: list[str]) -> None:
    compared, facts = tuned(recipe(trials=14), tmp_path)
    prepared = prepare_set(compared, tmp_path, 1, facts)
    write_results(prepared, [])
    findings = {finding.check: finding for finding in compare_runs(tmp_path).findings}
    assert findings["learning rate"].severity == "ok"
    assert "14 rates sampled from 1e-05 to 1 on other rows" in findings["learning rate"].sentence


def test_a_best_rate_at_the_end_adds_a_trial_once(tmp_path: Path, trained: list[str]) -> None:
    _, facts = tuned(recipe(trials=1), tmp_path)
    for name in BEST:
        swept = facts[name]["learning_rates"]
        low, high = swept["grid"]
        assert high == pytest.approx(2 * low, rel=0.01)  # beyond the only one
        assert swept["at_edge"] and swept["chosen"] in (low, high)
    assert len(trained) == 2 * 2


def test_it_goes_on_where_it_was_and_repeats_itself(tmp_path: Path, trained: list[str]) -> None:
    tuned(recipe(trials=4), tmp_path / "whole")
    whole = set(trained)
    trained.clear()
    tuned(recipe(trials=2), tmp_path / "parts")
    first = list(trained)
    tuned(recipe(trials=4), tmp_path / "parts")
    assert whole <= set(trained) and len(trained) == len(set(trained))  # nothing twice, and the same rates
    tuned(recipe(trials=4), tmp_path / "parts")
    assert len(set(trained) - whole) == len(set(first) - whole)  # but for the trial beyond the end of two


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
