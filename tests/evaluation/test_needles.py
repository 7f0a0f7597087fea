"""Needles: the answer is in the text, at every depth, in texts as long as they say."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("datasets")

from hf_arch.evaluation.needles import ROWS, needles

KINDS = pytest.mark.parametrize("kind", ["single", "multi", "variable"])
SIZES = pytest.mark.parametrize("characters", [1000, 8000])


def answer(kind: str, text: str) -> str:
    """By reading the text alone."""
    body, _, question = text.rpartition("\n\n")
    if kind != "variable":
        word = re.search(r"of the (\w+) is$", question)[1]
        return re.search(rf"The secret number of the {word} is (\d+)\.", body)[1]
    values: dict[str, str] = {}
    for name, value in re.findall(r"Let (\w+) = (\w+)\.", body):
        values[name] = values.get(value, value)  # each line only needs those before it
    return values[re.search(r"value of (\w+) is", question)[1]]


@KINDS
@SIZES
def test_the_answer_is_found_in_the_text(kind: str, characters: int) -> None:
    rows = needles(kind, characters)["test"]
    assert len(rows) == ROWS
    for row in rows:
        assert row["choices"][row["gold"]] == answer(kind, row["question"])
        assert characters - 120 < len(row["question"]) <= characters
        assert len(set(row["choices"])) == 4
        for choice in row["choices"]:
            inside = choice in row["question"]
            assert inside == (kind != "single" or choice == row["choices"][row["gold"]])


@KINDS
def test_facts_lie_at_all_depths_and_answers_at_all_places(kind: str) -> None:
    rows = needles(kind, 2000)["test"]
    first = r"Let |The secret number"
    depths = [re.search(first, row["question"]).start() / len(row["question"]) for row in rows]
    assert all(abs(depth - even) < 0.06 for depth, even in zip(depths, sorted(depths), strict=True))
    assert depths[0] < 0.1 and depths[-1] > (0.9 if kind == "single" else 0.6)
    assert all(15 <= [row["gold"] for row in rows].count(place) <= 35 for place in range(4))
    assert list(needles(kind, 2000)["test"]) == list(rows)


def test_the_tasks_are_those_of_lm_eval() -> None:
    pytest.importorskip("lm_eval")
    from hf_arch.evaluation.harness import load_tasks

    names = [f"{task}_{size}k" for task in ("needle_single", "needle_multi", "variable_tracking") for size in (1, 8)]
    loaded = load_tasks(names, rows="local", limit=3)["tasks"]
    assert set(loaded) == set(names)
    assert len(loaded["needle_multi_8k"].task_docs[0]["question"]) > 7_800
