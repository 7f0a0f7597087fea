"""Scores of weights that a run had before it was extended are not those of the run."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest

from hf_arch.evaluation.model_scores import EvalOptions, evaluate_path
from hf_arch.hub.run_facts import read_benchmarks
from hf_arch.runs.items import COLUMNS, write_items
from hf_arch.runs.record import RunRecord


def test_scores_of_earlier_weights_are_left_out_and_said(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    evaluate_path(str(run), EvalOptions(("perplexity",)))
    write_items(run, "a/task", pd.DataFrame([["x", 1, 1.0, 1, 1.0, 1.0]], columns=list(COLUMNS)))
    assert list(RunRecord.load(run).benchmarks) == ["perplexity"] and read_benchmarks(RunRecord.load(run))
    assert RunRecord.load(run).item_tasks == ["a_task"]

    scores = json.loads((run / "evaluation.json").read_text())
    scores["results"]["a/task"] = {"acc": 0.5, **{key: scores["results"]["perplexity"][key] for key in ("weights",)}}
    (run / "evaluation.json").write_text(json.dumps(scores))
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "steps": 2 * results["steps"]}))
    with caplog.at_level(logging.WARNING):
        record = RunRecord.load(run)
        assert record.benchmarks == {} and record.item_tasks == [] and read_benchmarks(record) == []
    assert "a/task, perplexity are of weights before step" in caplog.text
    evaluate_path(str(run), EvalOptions(("perplexity",)))
    assert list(RunRecord.load(run).benchmarks) == ["perplexity"]

    del scores["results"]["a/task"]["weights"]  # as earlier releases wrote them
    (run / "evaluation.json").write_text(json.dumps(scores))
    assert list(RunRecord.load(run).benchmarks) == ["a/task"]
