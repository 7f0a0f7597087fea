"""Which part of the spread over seeds is of the first weights, and which of the order of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hf_arch.analysis.audit import audit
from hf_arch.analysis.audits.spread import spread_words, variance_parts
from hf_arch.runs.suite import find_runs
from tests.experiments.synthetic import write_run


@pytest.mark.parametrize("truth", [(0.03, 0.0, 0.01), (0.0, 0.03, 0.01), (0.02, 0.02, 0.005)])
def test_parts_are_those_that_the_losses_were_made_of(truth: tuple[float, float, float]) -> None:
    """The mean over many tables: the parts are unbiased but for what is cut off below 0."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        start, order = rng.normal(0, truth[0], (8, 1)), rng.normal(0, truth[1], (1, 8))
        found.append(variance_parts(1.5 + start + order + rng.normal(0, truth[2], (8, 8))))
    assert np.allclose(np.mean(found, axis=0), np.square(truth), rtol=0.12, atol=1e-5)


def test_seeds_that_always_change_together_are_not_taken_apart() -> None:
    assert spread_words({(1, 1): 1.5, (2, 2): 1.6, (3, 3): 1.55}) == ""
    assert spread_words({(1, 1): 1.5}) == ""
    assert "by the first weights alone (2 seeds)" in spread_words({(1, 1): 1.5, (2, 1): 1.6})
    assert "by the order of the data alone (2 seeds)" in spread_words({(1, 1): 1.5, (1, 2): 1.6})


def test_the_audit_says_it_of_a_matrix_over_the_order(tmp_path: Path) -> None:
    """Weights move the loss by 0.1, orders by 0.01."""
    for order in (1, 2, 3):
        for seed in (1, 2, 3):
            given = {"data_seed": order, "order_fingerprint": f"order-{order}", "architecture": "gla"}
            config = {"training": {"data_seed": order}, "model": {"architecture": "gla"}}
            loss = 1.5 + seed / 10 + order / 100
            write_run(tmp_path, f"gla-data_seed-{order}", seed, loss=loss, results=given, config=config)
    runs = find_runs(tmp_path)
    assert [(run.seed, run.data_seed) for run in runs].count((2, 3)) == 1
    said = next(finding for finding in audit(runs) if finding.check == "spread")
    assert said.severity == "note" and "gla: 0.1 by the first weights, 0.01 by the order of the data" in said.sentence


def test_one_seed_stands_for_both_where_a_recipe_gives_one(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path, "gla", seed)
    runs = find_runs(tmp_path)
    assert all(run.data_seed == run.seed for run in runs)
    assert "spread" not in {finding.check for finding in audit(runs)}
