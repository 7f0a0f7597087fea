"""A probe on two processes is the probe on one: the same losses, the same accuracies, to 1e-6.

Dropout is off (every process draws its own), and steps are plain SGD: AdamW's first steps are the signs of gradients,
also where these are rounding alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.training.run import run_training
from tests.training.distributed_jobs import cut
from tests.training.test_distributed import environment, launch, results

pytestmark = pytest.mark.distributed
__all__ = ["environment"]

SCORES = ("accuracy", "accuracy_macro", "best_accuracy", "best_accuracy_macro", "final_val_loss", "final_train_loss")
MODEL = {"architecture": "gla", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
ROWS = {"examples": 40}
PROBES: dict[str, dict[str, Any]] = {
    "mqar": {"task": "mqar", "options": {"vocab_size": 16, "sequence_length": 8, "num_pairs": 2, **ROWS}},
    "last state": {"task": "compression", "options": {"vocab_size": 4, "sequence_length": 4, **ROWS}},
}
STEPS = 6


def recipe(probe: dict[str, Any], processes: int = 1, **training: Any) -> dict[str, Any]:
    """A run whose steps of 16 rows, in two halves one after the other, are shared out over so many processes."""
    steps = {"max_steps": STEPS, "eval_steps": 2, "logging_steps": 1, "save_steps": 3, "optim": "sgd"}
    batch = {"per_device_train_batch_size": 8 // processes, "gradient_accumulation_steps": 2}
    batch["per_device_eval_batch_size"] = 16  # three batches of 40 rows: the second process scores one, the first two
    return {"model": MODEL, "probe": {"stop_accuracy": 1.0, **probe}, "training": {**steps, **batch, **training}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name, probe in PROBES.items():
            run_training(Recipe.from_dict(recipe(probe)), folder / name, quiet=True)
    return folder


@pytest.fixture(scope="module")
def ddp(alone: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    cut(alone / "mqar", folder / "taken over", 3)
    mqar = recipe(PROBES["mqar"], 2)
    solved = recipe({**PROBES["mqar"], "stop_accuracy": 1e-9}, 2)
    jobs = [
        *({"recipe": recipe(probe, 2), "folder": str(folder / name)} for name, probe in PROBES.items()),
        {"recipe": mqar, "folder": str(folder / "taken over"), "resume": True},
        {"cut": [str(folder / "mqar"), str(folder / "resumed"), 3]},
        {"recipe": mqar, "folder": str(folder / "resumed"), "resume": True},
        {"recipe": solved, "folder": str(folder / "solved")},
    ]
    launch(jobs, folder, **environment)
    return folder


def curve(run: Path) -> list[tuple[int, float]]:
    """The loss of every step, and what every evaluation measured."""
    names = ("loss", "val_loss", "val_accuracy", "val_accuracy_macro")
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    return [(row["step"], row[name]) for row in rows for name in names if name in row]


@pytest.mark.parametrize(
    ("run", "other"),
    [("mqar", "mqar"), ("last state", "last state"), ("resumed", "mqar"), ("taken over", "mqar")],
)
def test_two_processes_train_the_probe_of_one(ddp: Path, alone: Path, run: str, other: str) -> None:
    mine, theirs = results(ddp / run), results(alone / other)
    assert mine["launch"]["processes"] == 2 and mine["launch"]["strategy"] == "ddp"
    assert [step for step, _ in curve(ddp / run)] == [step for step, _ in curve(alone / other)]
    assert [value for _, value in curve(ddp / run)] == pytest.approx(
        [value for _, value in curve(alone / other)], abs=1e-6
    )
    assert [mine[key] for key in SCORES] == pytest.approx([theirs[key] for key in SCORES], abs=1e-6)
    assert mine["tokens_seen"] == theirs["tokens_seen"]


def test_all_processes_end_where_the_probe_is_solved(ddp: Path) -> None:
    """Both have the same accuracy, of all test rows, so that none waits for the other."""
    found = json.loads((ddp / "solved" / "results.json").read_text())
    assert found["status"] == "completed" and found["stopped_early"] and found["steps"] == 2
