"""The search study: the front, the score as it is defined, and a recommendation that follows from both."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hf_arch.analysis.search import search_study
from hf_arch.experiments import load
from hf_arch.report.search import write_study
from tests.experiments.synthetic import write_run


def suite(root: Path, sizes: dict[str, tuple[int, float]]) -> Path:
    """Runs by name: (parameters, perplexity)."""
    for name, (parameters, perplexity) in sizes.items():
        numbers = {"params_total": parameters, "final_val_perplexity": perplexity}
        write_run(root, name, 1, loss=math.log(perplexity), results=numbers)
    return root


def test_the_smallest_model_within_reach_of_the_best_is_recommended(tmp_path: Path) -> None:
    sizes = {"a": (1_000_000, 60.0), "b": (2_000_000, 41.0), "c": (4_000_000, 40.0), "worse": (3_000_000, 45.0)}
    study = search_study(load(suite(tmp_path, sizes)))
    assert study.recommended == "b"
    assert [entry.name for entry in study.candidates] == ["a", "b", "worse", "c"]
    assert {entry.name for entry in study.candidates if entry.on_front} == {"a", "b", "c"}
    assert study.candidates[0].score == pytest.approx(60.0)
    assert study.candidates[3].score == pytest.approx(10.0)
    assert "2.5% worse than the best of 4 (c, 40.00) with 50% of its parameters" in study.words


def test_the_best_is_recommended_where_nothing_smaller_comes_close(tmp_path: Path) -> None:
    study = write_study(load(suite(tmp_path, {"a": (1_000_000, 60.0), "b": (2_000_000, 41.0)})), tmp_path)
    assert study.recommended == "b" and "no smaller one" in study.words
    assert json.loads((tmp_path / "search_study.json").read_text())["recommended"] == "b"


def test_without_results_nothing_is_recommended(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 1, results={"status": "failed", "final_val_loss": None})
    assert search_study(load(tmp_path)).recommended is None
