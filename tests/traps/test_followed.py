"""The learning rate that was logged, and not the one that the recipe gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.experiments.synthetic import STEPS
from tests.traps.test_planted import judged


def rewrite(root: Path, change: Callable[[int, float], float], every: int = 1) -> None:
    """The logged rates of gla, changed; of its rows every so many are kept."""
    for path in root.glob("gla_*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if "learning_rate" in row:
                row["learning_rate"] = change(row["step"], row["learning_rate"])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[::every]))


@pytest.mark.parametrize(
    ("change", "every", "outcome"),
    [
        (lambda step, rate: rate * (3 if step > STEPS / 2 else 1), 1, "confounded"),
        (lambda step, rate: rate if step < 150 else 1e-5, 1, "confounded"),
        (lambda step, rate: 3 * rate, 1, "supported"),
        (lambda step, rate: rate, 3, "supported"),
    ],
    ids=["raised on the way", "lowered before the end", "another highest rate", "logged less often"],
)
def test_a_course_that_no_recipe_gives_is_named(
    change: Callable[[int, float], float], every: int, outcome: str, tmp_path: Path
) -> None:
    judged(tmp_path, {}, {})
    rewrite(tmp_path, change, every)
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome == outcome, verdict.evidence
    assert (verdict.confounds == ("schedule",)) == (outcome == "confounded")
