"""Scores that stand next to each other and were made in different ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.experiments.synthetic import write_run

SETTINGS = {"batch_size": 8, "dtype": "float32", "limit": None}


def scored(root: Path, first: dict[str, Any], second: dict[str, Any]) -> Any:
    for name, change in (("gla", first), ("llama", second)):
        for seed in (1, 2, 3):
            folder = write_run(root, name, seed)
            samples = change.get("samples", 500)
            settings = {**SETTINGS, **{key: value for key, value in change.items() if key != "samples"}}
            task = {"acc": 0.4, "samples": samples, "rows": "validation", "settings": settings}
            (folder / "evaluation.json").write_text(json.dumps({"results": {"arc_easy": task}}))
    [found] = [finding for finding in compare_runs(root).findings if finding.check == "scores"]
    return found


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"average_of_checkpoints": [100, 150, 200]}, "mean of checkpoints 3: gla"),
        ({"limit": 100, "samples": 100}, "limit 100"),
        ({"dtype": "bfloat16"}, "dtype bfloat16"),
        ({"samples": 480}, "samples 480"),
    ],
)
def test_scores_made_otherwise_are_named(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    found = scored(tmp_path, change, {})
    assert found.severity == "violation" and "arc_easy" in found.sentence and word in found.sentence


def test_scores_in_other_batches_compare(tmp_path: Path) -> None:
    assert scored(tmp_path, {"batch_size": 1}, {}).severity == "ok"
