"""Metrics of plugins in recipes of probes: on all test rows, at evaluations and at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import separate_plugins
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.runs.record import RunRecord
from hf_arch.training.run import run_training

PLUGIN = """
import torch
from hf_arch.core.registry import METRICS
from hf_arch.evaluation.metric import Metric


@METRICS.register("right_answers_of_mine")
class RightAnswers(Metric):
    show, higher_is_better = ".1%", True

    def measure(self, model, batch, logits):
        asked = batch["labels"] != -100
        right = (logits.argmax(-1) == batch["labels"]) & asked
        return torch.stack([right.sum(), asked.sum()])
"""


@pytest.fixture(autouse=True)
def own_registries():
    with separate_plugins():
        yield


def values(folder: Path, **changes: Any) -> dict[str, Any]:
    plugin = folder / "right_answers.py"
    plugin.write_text(PLUGIN)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return {
        "model": {"architecture": "llama", **sizes, "plugins": [str(plugin)]},
        "probe": {"task": "mqar", "options": {"vocab_size": 64, "sequence_length": 16, "examples": 300}},
        "training": {"max_steps": 4, "eval_steps": 2, "per_device_train_batch_size": 16},
        "evaluation": {"metrics": ["right_answers_of_mine"]},
        "experiment": {"name": "probe", "metric": "right_answers_of_mine"},
        **changes,
    }


@pytest.mark.rest
def test_a_metric_is_measured_on_all_test_rows(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(values(tmp_path))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    without = Recipe.from_dict(values(tmp_path, evaluation={}, experiment={"name": "probe"}))
    assert recipe.stable_hash() != without.stable_hash() and "evaluation" not in without.to_dict()
    run_training(recipe, tmp_path / "run", quiet=True)
    record = RunRecord.load(tmp_path / "run")
    assert record.plugin_metrics["right_answers_of_mine"]["value"] == pytest.approx(record.numbers["accuracy"])
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_accuracy" in row]
    assert len(rows) == 2
    assert all(row["val_right_answers_of_mine"] == pytest.approx(row["val_accuracy"]) for row in rows)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": {"sequences": 3}}, "evaluation.sequences: is about text, .* allowed: metrics"),
        ({"evaluation": {"metrics": ["right_answers_of_main"]}}, "nearest.*right_answers_of_mine"),
        ({"data": {"dataset": "tinyshakespeare"}}, "data: a recipe with a `probe` section generates its rows"),
    ],
)
def test_what_a_probe_does_not_take_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(values(tmp_path, **changes))


def test_a_probe_read_from_its_last_state_takes_none(tmp_path: Path) -> None:
    probe = {"task": "compression", "options": {"vocab_size": 4, "sequence_length": 4, "examples": 64}}
    recipe = Recipe.from_dict(values(tmp_path, probe=probe))
    with pytest.raises(ConfigError, match="'right_answers_of_mine' reads the predictions of every position"):
        run_training(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
