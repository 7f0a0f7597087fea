"""A run that is told to stop after a step and goes on is the run that was not: rows, rates, weights, results."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.core.failures import Interrupted
from hf_arch.core.one_writer import only_writer
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import read_metrics
from hf_arch.training.run import run_training
from hf_arch.training.trainer import ArchTrainer
from tests.training.test_resume import assert_equal_runs, values

TRAINING: dict[str, Any] = {"eval_steps": 1, "save_steps": 100, "logging_steps": 2, "max_steps": 5}
# The loss goes up and down at such a rate, so that schedules and the best checkpoint have something to follow.
WILD: dict[str, Any] = {"learning_rate": 0.5, "warmup_steps": 0}
CASES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "rate that follows the loss": {
        **WILD,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "threshold": 0.5},
    },
    "best": {**WILD, "save_steps": 1, "load_best_model_at_end": True, "save_total_limit": None},
    "at the start": {"eval_on_start": True},
}


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ArchTrainer.training_step

    def training_step(self: ArchTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ArchTrainer, "training_step", training_step)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", CASES)
def test_a_run_that_stops_where_an_evaluation_is_due_is_the_uninterrupted_one(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    recipe = Recipe.from_dict(values(text, training={**TRAINING, **CASES[case]}))
    run_training(recipe, tmp_path / "whole", quiet=True)
    for step in (2, 3, 5):  # the later ones stop runs that have just made an evaluation late; 5 is the last step
        with monkeypatch.context() as patch:
            stop_after(step, patch)
            with pytest.raises(Interrupted):
                run_training(recipe, tmp_path / "run", resume=step > 2, quiet=True)
    assert [
        row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["step"] > 4 and "val_loss" in row
    ] == []
    run_training(recipe, tmp_path / "run", resume=True, quiet=True)
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


@pytest.mark.rest
def test_an_evaluation_that_is_made_up_for_twice_is_one_row(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.from_dict(values(text, training=TRAINING))
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Interrupted):
            run_training(recipe, tmp_path / "run", quiet=True)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ArchTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run_training(recipe, tmp_path / "run", resume=True, quiet=True)
    evaluated = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in row]
    assert evaluated == [1, 2]
    run_training(recipe, tmp_path / "run", resume=True, quiet=True)
    evaluated = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in row]
    assert evaluated == [1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "completed"


def test_an_optimiser_of_a_missing_package_is_refused(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.trainer_optimizer.is_schedulefree_available", lambda: False, raising=False)
    monkeypatch.setattr("transformers.trainer.is_schedulefree_available", lambda: False, raising=False)
    asked = values(text, training={"optim": "schedule_free_adamw"})
    with pytest.raises(ConfigError, match=r"training\.optim: 'schedule_free_adamw': .*schedulefree"):
        run_training(Recipe.from_dict(asked), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_best_of_evaluations_without_checkpoints_is_refused(text: Path, tmp_path: Path) -> None:
    asked = values(text, training={"load_best_model_at_end": True, "eval_steps": 1, "save_steps": 2})
    with pytest.raises(ConfigError, match=r"training\.save_steps: 2 leaves evaluations .* nearest: 1"):
        run_training(Recipe.from_dict(asked), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_train_in_one_folder(text: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(values(text, training={**TRAINING, "max_steps": 2, "save_steps": 1}))
    folder = tmp_path / "run"
    folder.mkdir()
    with only_writer(folder, wait=False) as alone:
        assert alone
        with pytest.raises(ConfigError, match=r"--output-dir: another process is training in .*run; wait for it"):
            run_training(recipe, folder, quiet=True)
        assert list(folder.iterdir()) == []
    assert run_training(recipe, folder, quiet=True)["status"] == "completed"
