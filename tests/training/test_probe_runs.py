"""A probe is a task of the one trainer: it resumes bit for bit, in any precision and with any optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.training.run import run_training
from tests.training.test_resume import assert_equal_runs, cut

MODEL = {"architecture": "gla", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
COMPRESSION = {"task": "compression", "options": {"vocab_size": 4, "sequence_length": 4, "examples": 64}}
MQAR = {"task": "mqar", "options": {"vocab_size": 16, "sequence_length": 8, "num_pairs": 2, "examples": 64}}
SCORES = ("accuracy", "accuracy_macro", "best_accuracy", "best_accuracy_macro", "final_val_loss", "final_train_loss")


def probe(folder: Path, task: dict[str, Any] = MQAR, extend_to: int | None = None, **training: Any) -> dict[str, Any]:
    values = {"max_steps": 6, "eval_steps": 4, "save_steps": 3, "per_device_train_batch_size": 16, **training}
    model = {**MODEL, "embedding_dropout": 0.1}
    recipe = Recipe.from_dict({"model": model, "probe": {"stop_accuracy": 1.0, **task}, "training": values})
    return run_training(recipe, folder, resume=folder.exists(), quiet=True, extend_to=extend_to)


@pytest.mark.rest
@pytest.mark.parametrize(
    ("task", "training"),
    [(MQAR, {}), (MQAR, {"optim": "muon", "precision": "bf16"}), (COMPRESSION, {"lr_scheduler_type": "linear"})],
    ids=["adamw", "muon in bf16", "last state"],
)
def test_a_resumed_probe_is_the_unbroken_one(task: dict[str, Any], training: dict[str, Any], tmp_path: Path) -> None:
    """Step 3 lies between two evaluations, and dropout draws from the random numbers that the checkpoint kept."""
    whole = probe(tmp_path / "whole", task, **training)
    resumed = probe(cut(tmp_path / "whole", tmp_path / "cut"), task, **training)
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")
    assert [resumed[key] for key in SCORES] == [whole[key] for key in SCORES]
    assert whole["precision"] == training.get("precision", "fp32")
    assert whole["optimizer"]["class"] == ("MuonWithAdamW" if "optim" in training else "AdamW")


@pytest.mark.rest
def test_a_probe_goes_on_past_its_end(tmp_path: Path) -> None:
    probe(tmp_path / "run")
    results = probe(tmp_path / "run", extend_to=9)
    assert results["steps"] == 9 and results["changes"][0]["key"] == "training.max_steps"
    rates = {
        row["step"]: row["learning_rate"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row
    }
    assert rates[6] < rates[8] and results["changes"][0]["note"].endswith(f"instead of {0:.4g}")


def test_the_scores_are_of_the_weights_that_are_kept(tmp_path: Path) -> None:
    """Those of the best checkpoint, where it is loaded at the end; a rate that spoils the weights makes it an early
    one."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": None}
    wild = {"learning_rate": 0.8, "lr_scheduler_type": "constant", "warmup_steps": 0}
    results = probe(tmp_path / "run", **{**best, **wild, "max_steps": 8, "eval_steps": 2, "save_steps": 2})
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_accuracy" in row]
    chosen = min(rows, key=lambda row: row["val_loss"])
    assert chosen is not rows[-1]
    names = {"final_val_loss": "val_loss", "accuracy": "val_accuracy", "accuracy_macro": "val_accuracy_macro"}
    assert {name: results[name] for name in names} == {name: chosen[row] for name, row in names.items()}


@pytest.mark.rest
def test_accumulated_batches_are_one(tmp_path: Path) -> None:
    """The loss is the mean over the answers of the step, however many rows each micro-batch has. By SGD: AdamW's first
    steps are the signs of gradients, also where these are rounding alone."""
    quiet = {"stop_accuracy": 1.0, **MQAR}
    losses = []
    for name, rows in (("whole", 16), ("parts", 4)):
        training = {"max_steps": 4, "eval_steps": 4, "logging_steps": 1, "save_strategy": "no", "optim": "sgd"}
        training |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 16 // rows}
        run_training(
            Recipe.from_dict({"model": MODEL, "probe": quiet, "training": training}), tmp_path / name, quiet=True
        )
        losses.append([row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.rest
def test_no_checkpoint_lies_where_the_probe_was_solved(tmp_path: Path) -> None:
    """A run that went on from there would train past the end of the unbroken one."""
    results = probe(tmp_path / "run", {**MQAR, "stop_accuracy": 1e-9}, max_steps=9, eval_steps=3)
    assert results["steps"] == 3 and results["stopped_early"]
    assert not list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert (
        probe(cut(tmp_path / "run", tmp_path / "cut"), {**MQAR, "stop_accuracy": 1e-9}, max_steps=9, eval_steps=3)[
            "steps"
        ]
        == 3
    )
