"""Learning rates chosen apart: other rows and seeds than the comparison, the same grid for every run, extended once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_arch.analysis.compare import compare_runs
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_json
from hf_arch.data import DataOptions, prepare_data
from hf_arch.data.validation_parts import validation_part
from hf_arch.experiments.execution import runner
from hf_arch.experiments.execution.sets import run_set
from hf_arch.recipe.recipe import Recipe, read_recipe
from hf_arch.report.preview import preview, print_forecast
from tests.training.tiny import recipe_values, write_text

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "ffn": "none"}


def recipe(rates: list[float], text: Path | None = None, *overrides: str, **experiment: Any) -> Recipe:
    values: dict[str, Any] = recipe_values(text) if text else {"probe": {"task": "parity"}, "training": {}}
    values["model"] = SIZES
    values["training"] = {"max_steps": 1}
    runs = {name: {"model.architecture": name} for name in ("llama", "gla")}
    values["experiment"] = {"name": "set", "seeds": 3, "runs": runs, "learning_rates": rates, **experiment}
    return read_recipe(values, overrides)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, float, str]]:
    """In place of training: a loss that is best at a rate of its own, told by what was trained."""
    done: list[tuple[str, int, float, str]] = []
    best = {"llama": 1e-2, "gla": 1e-3}

    def train(prepared: runner.PreparedSet, results_dir: Path, options: runner.RunOptions) -> list[Any]:
        for run in prepared.runs:
            if run.status != "completed":
                rate, seed = run.config["training"]["learning_rate"], run.config["training"]["seed"]
                name = run.config["model"]["architecture"]
                done.append((name, seed, rate, run.config.get("evaluation", {}).get("rows", "")))
                far = abs(math.log10(rate / best[name]))
                numbers = {"final_val_loss": 1 + far + 0.01 * seed, "accuracy": 1 - 0.1 * far - 0.001 * seed}
                facts = {"status": "completed", "seed": seed, "learning_rate": rate}
                write_json(run.folder / "experiment_config.json", run.config)
                write_json(run.folder / "results.json", {"name": run.name, **facts, **numbers})
        return []

    for module in ("rates", "sets"):
        monkeypatch.setattr(f"hf_arch.experiments.execution.{module}.train_set", train)
    return done


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "cache"))
    return write_text(tmp_path)


def test_the_rate_is_chosen_on_other_rows_and_seeds(
    tmp_path: Path, text: Path, trained: list[tuple[str, int, float, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked, folder = recipe([3e-4, 1e-3, 3e-3, 1e-2, 3e-2], text), tmp_path / "results"
    for found in preview(asked, folder):
        print_forecast(found)
    said = capsys.readouterr().out
    assert "10 of 10 runs to train" in said and "6 of 6 runs to train" in said and not trained
    done = run_set(asked, folder, runner.RunOptions())
    prepared = done.prepared
    assert not done.failed and len(prepared.runs) == 6 and len(trained) == 16
    sweep, claim = trained[:10], trained[10:]
    assert {(seed, rows) for _name, seed, _rate, rows in sweep} == {(4, "selection")}
    assert {(seed, rows) for _name, seed, _rate, rows in claim} == {(1, "claim"), (2, "claim"), (3, "claim")}
    for name in ("llama", "gla"):  # the same budget for both
        assert len({rate for run, _seed, rate, _rows in sweep if run == name}) == 5
    assert {(name, rate) for name, _seed, rate, _rows in claim} == {("llama", 1e-2), ("gla", 1e-3)}
    facts = json.loads((prepared.runs[0].folder / "experiment_config.json").read_text())["run"]["learning_rates"]
    assert facts["chosen"] == 1e-2 and not facts["at_edge"] and facts["extended"] == [] and len(facts["scores"]) == 5
    comparison = compare_runs(folder)  # the sweep, which lies below, is in no comparison
    assert {group.name: len(group.runs) for group in comparison.groups} == {"llama": 3, "gla": 3}
    trained.clear()
    run_set(asked, folder, runner.RunOptions())
    assert not trained
    for found in preview(asked, folder):
        print_forecast(found)
    assert "0 of 6 runs to train" in capsys.readouterr().out


def test_a_best_rate_at_the_end_extends_the_grid_once(
    tmp_path: Path, trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = run_set(recipe([3e-3, 1e-2, 3e-2]), tmp_path, runner.RunOptions()).prepared
    assert "the best of gla lies at the end of the grid, which is extended once for all runs" in capsys.readouterr().err
    rates = {
        name: {rate for run, seed, rate, _rows in trained if run == name and seed == 4} for name in ("llama", "gla")
    }
    assert rates["llama"] == rates["gla"] == {9e-4, 3e-3, 1e-2, 3e-2}
    found = {run.name: run.config["run"]["learning_rates"] for run in prepared.runs}
    assert found["gla"]["extended"] == [9e-4] and found["gla"]["at_edge"] and not found["llama"]["at_edge"]


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ConfigError, match="expected at least two different rates"):
        recipe([1e-3])
    with pytest.raises(ConfigError, match="use numbers above 0"):
        recipe([1e-3, -1.0])
    with pytest.raises(ConfigError, match=r"experiment\.learning_rates\.runs: 'glaa' is not known; nearest: 'gla'"):
        recipe([], learning_rates={"rates": [1e-3, 1e-2], "runs": ["glaa"]})
    with pytest.raises(ConfigError, match=r"not together with experiment\.matrix"):
        recipe([1e-3, 1e-2], matrix={"model.hidden_size": [16, 32]})
    with pytest.raises(ConfigError, match=r"override training\.learning_rate: the recipe chooses it"):
        run_set(recipe([1e-3, 1e-2], None, "training.learning_rate=1.0"), Path("nowhere"), runner.RunOptions())


def test_the_parts_are_apart_and_whole(text: Path) -> None:
    data = prepare_data(DataOptions(corpus=str(text), tokenizer="char", sequence_length=16)).validation
    even, odd = validation_part(data, "selection"), validation_part(data, "claim")
    assert len(even) + len(odd) == len(data) and even.num_bytes == data.num_bytes
    for index in range(len(data)):
        part = even if index % 2 == 0 else odd
        assert torch.equal(part[index // 2]["input_ids"], data[index]["input_ids"])
