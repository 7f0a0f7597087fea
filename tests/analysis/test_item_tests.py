"""Tests of two models on the same items: exact where they can be, and no more false positives than they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.item_tests import item_test, mcnemar, seeds_and_items
from hf_arch.core.errors import ConfigError
from hf_arch.report.page import render
from hf_arch.runs.files import EVALUATION_FILE
from hf_arch.runs.items import COLUMNS, items_file, read_items, write_items
from tests.report.text import comparison_text


def table(right: np.ndarray, items: list[str] | None = None) -> pd.DataFrame:
    names = items or [f"item{index}" for index in range(len(right))]
    nats = 2.0 - right
    return pd.DataFrame(dict(zip(COLUMNS, (names, right.astype(int), nats, 4, nats / 4, right - 0.5), strict=True)))


def test_mcnemar_is_the_exact_binomial() -> None:
    first = np.array([1] * 9 + [0] * 2 + [1] * 20 + [0] * 5)
    second = np.array([0] * 9 + [1] * 2 + [1] * 20 + [0] * 5)
    assert mcnemar(first, second) == pytest.approx(2 * binom.cdf(2, 11, 0.5))
    assert mcnemar(first, first) == 1.0


def test_a_true_difference_is_found() -> None:
    draw = np.random.default_rng(0)
    differences = 0.3 + draw.normal(size=(3, 400)) * 0.5 + draw.normal(size=(3, 1)) * 0.02
    mean, low, high, p = seeds_and_items(differences)
    assert low < 0.3 < high and mean == pytest.approx(differences.mean()) and p < 0.01


def test_no_spread_is_no_certainty() -> None:
    assert seeds_and_items(np.ones((1, 3))) == (1.0, None, None, None)
    assert seeds_and_items(np.zeros((3, 3)))[3] == 1.0
    ours, theirs = {1: table(np.ones(3))}, {1: table(np.zeros(3))}
    found = item_test("task", "right", "a", "b", ours, theirs)
    assert found.p_value == pytest.approx(0.25) and found.verdict == "undecided"  # McNemar of three items


def test_only_the_same_items_and_seeds_are_compared() -> None:
    draw = np.random.default_rng(1)
    right = draw.integers(0, 2, 6).astype(float)
    ours = {1: table(right), 2: table(1 - right)}
    theirs = {2: table(1 - right[::-1], [f"item{index}" for index in range(5, -1, -1)]), 3: table(right)}
    found = item_test("task", "right", "a", "b", ours, theirs)
    assert found.seeds == (2,) and found.items == 6 and found.difference == 0.0
    fewer = {2: table(right[:2], ["item0", "other"])}
    assert item_test("task", "right", "a", "b", ours, fewer).items == 1
    assert item_test("task", "right", "a", "b", ours, {9: table(right)}) is None
    assert item_test("task", "right", "a", "b", ours, {2: table(right[:1], ["other"])}) is None


def test_items_are_whole_or_one_line(tmp_path: Path) -> None:
    wanted = table(np.array([1.0, 0.0]))
    write_items(tmp_path, "a/b:c", wanted)
    pd.testing.assert_frame_equal(read_items(tmp_path, "a/b:c"), wanted)
    assert read_items(tmp_path, "other") is None
    items_file(tmp_path, "a/b:c").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"items\.parquet: cannot be read"):
        read_items(tmp_path, "a/b:c")


def test_scores_are_columns_and_items_are_compared(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    hard = draw.uniform(size=60)
    for name, ability in (("strong", 0.9), ("weak", 0.2)):
        for seed in (1, 2, 3):
            folder = tmp_path / f"{name}_{seed}"
            folder.mkdir()
            results = {"name": name, "status": "completed", "seed": seed, "final_val_loss": 1.0 + seed / 10}
            (folder / "results.json").write_text(json.dumps(results))
            right = ((hard < ability) ^ (draw.uniform(size=60) < 0.05)).astype(float)
            write_items(folder, "quiz", table(right))
            scores = {"quiz": {"acc": right.mean(), "bits_per_byte": 1.0, "margin": 0.1, "rows": "here"}}
            (folder / EVALUATION_FILE).write_text(json.dumps({"results": scores}))
    comparison = compare_runs(tmp_path)
    frame = comparison.frame().set_index("name")
    assert frame.loc["strong", "quiz.acc"] > frame.loc["weak", "quiz.acc"] + 0.4
    assert {"quiz.acc_low", "quiz.bits_per_byte", "quiz.margin_high"} <= set(frame.columns)
    tested = {(test.first, test.score): test for test in comparison.item_tests}
    first = next(test for (_, score), test in tested.items() if score == "right")
    assert first.verdict == ("better" if first.first == "strong" else "worse") and len(first.mcnemar) == 3
    assert all(p < 0.01 for p in first.mcnemar.values())
    text = comparison_text(comparison, 200)
    assert "quiz acc" in text and "Item by item" in text and "over 60 items, 3 seeds" in text
    assert {entry["task"] for entry in comparison.to_dict()["items"]} == {"quiz"}
    page = render(comparison, "quiz")
    assert "Item by item: 3 tests" in page and "quiz acc" in page
