"""`hf-arch eval --average-last`: means over a run's last checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.evaluation.model_scores import EvalOptions, evaluate_path
from hf_arch.evaluation.text_loss import TextOptions
from hf_arch.hub.run_facts import read_benchmarks
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.items import COLUMNS, read_items, write_items
from hf_arch.runs.record import RunRecord
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values, write_text


@pytest.mark.rest
def test_scores_are_the_mean_of_the_last_checkpoints(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    training = {"max_steps": 3, "save_steps": 1, "save_total_limit": 3, "eval_strategy": "no", "learning_rate": 0.05}
    run = tmp_path / "run"
    run_training(Recipe.from_dict(recipe_values(text, training=training)), run, quiet=True)
    options = {"tasks": ("perplexity",), "text": TextOptions(file=str(text)), "device": "cpu"}
    single = [
        evaluate_path(str(run / "checkpoints" / f"checkpoint-{step}"), EvalOptions(**options))["results"]["perplexity"]
        for step in (2, 3)
    ]
    write_items(run, "perplexity", pd.DataFrame([("one", 1, 2.0, 3, 0.9, 0.1)], columns=list(COLUMNS)))
    found = evaluate_path(str(run), EvalOptions(**options, average_last=2))
    assert read_items(run, "perplexity") is None  # they were of the final weights, and the score no longer is
    scores = found["results"]["perplexity"]
    assert single[0]["loss"] != single[1]["loss"]
    assert scores["loss"] == pytest.approx((single[0]["loss"] + single[1]["loss"]) / 2)
    assert found["settings"]["average_of_checkpoints"] == [2, 3]
    assert json.loads((run / "evaluation.json").read_text())["results"]["perplexity"]["loss"] == scores["loss"]
    told = {row.metric: row for row in read_benchmarks(RunRecord.load(run))}["loss"]
    assert (told.value, told.rows) == (scores["loss"], "text.txt, mean over the checkpoints of steps 2, 3")
    own = {**options, "text": TextOptions()}
    held_out = evaluate_path(str(run), EvalOptions(**own, average_last=2))["results"]["perplexity"]
    assert "validation split of text.txt" in held_out["rows"]  # the run's own, also for its checkpoints
    with pytest.raises(ConfigError, match="has 3 checkpoints, not 4"):
        evaluate_path(str(run), EvalOptions(**options, average_last=4))
    with pytest.raises(ConfigError, match="--average-last: 0 is not allowed"):
        EvalOptions(**options, average_last=0)
