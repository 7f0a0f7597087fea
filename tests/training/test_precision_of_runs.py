"""Which precision a run computes in: what the recipe asks for works on a CPU, and what was decided once stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_arch.recipe.recipe import Recipe
from hf_arch.training.launch import LaunchRequest, requested_precision
from hf_arch.training.precision import Precision
from hf_arch.training.precision_speed import PrecisionSpeed
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values

on_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="a run would take the accelerator")


def train(text: Path, folder: Path, precision: str, resume: bool = False) -> dict[str, Any]:
    changes = {"precision": precision, "max_steps": 2, "eval_steps": 2, "save_steps": 2}
    values = recipe_values(text, training=changes, evaluation={"speed": False, "new_tokens": 1})
    return run_training(Recipe.from_dict(values), folder, resume=resume, quiet=True)


def decide(monkeypatch: pytest.MonkeyPatch, bf16_ms: float) -> None:
    monkeypatch.delenv("HF_ARCH_PRECISION", raising=False)
    speed = PrecisionSpeed("here", {"fp32": 1.0, "bf16": 1.0}, {"fp32": 2.0, "bf16": bf16_ms})
    monkeypatch.setattr("hf_arch.training.precision.precision_speed", lambda: speed)


@pytest.mark.rest
@on_cpu
def test_bf16_trains_on_a_cpu(text: Path, tmp_path: Path) -> None:
    """Its losses are near those of fp32 and not the same: the products were in bf16."""
    half, full = (train(text, tmp_path / name, name) for name in ("bf16", "fp32"))
    assert half["precision"] == "bf16" and half["status"] == "completed"
    assert half["final_val_loss"] != full["final_val_loss"]
    assert half["final_val_loss"] == pytest.approx(full["final_val_loss"], rel=1e-2)
    assert half["precision_measured"] is None


@pytest.mark.rest
@on_cpu
def test_auto_takes_the_faster_and_says_the_numbers(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch, bf16_ms=1.0)
    results = train(text, tmp_path / "run", "auto")
    assert results["precision"] == "bf16"
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["precision_measured"]["step_ms"] == {"fp32": 2.0, "bf16": 1.0}
    assert json.loads((tmp_path / "run" / "experiment_config.json").read_text())["run"]["precision"]["name"] == "bf16"


@pytest.mark.rest
@on_cpu
def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of before the decision was kept: then its results say it."""
    decide(monkeypatch, bf16_ms=1.0)
    train(text, tmp_path / "run", "auto")
    results, config = tmp_path / "run" / "results.json", tmp_path / "run" / "experiment_config.json"
    decide(monkeypatch, bf16_ms=9.0)
    for keys in ((), ("precision",)):
        written = json.loads(config.read_text())
        for key in keys:
            del written["run"][key]
        config.write_text(json.dumps(written))
        results.write_text(json.dumps({**json.loads(results.read_text()), "status": "interrupted"}))
        assert train(text, tmp_path / "run", "auto", resume=True)["precision"] == "bf16"


def test_what_was_decided_before_gives_way_to_recipe_and_launcher() -> None:
    before = Precision("bf16", "the set was begun in it")
    assert requested_precision({}, LaunchRequest(), before) is before
    assert requested_precision({"precision": "fp32"}, LaunchRequest(), before).name == "fp32"
    launched = requested_precision({}, LaunchRequest(precision="bf16"), Precision("fp32", "begun in it"))
    assert (launched.name, launched.reason) == ("bf16", "asked for by the launcher")
