"""Tasks of lm_eval by name, and their scores: what stands behind `hf-arch eval`.

Rows come from this machine where they are here (`offline.py`), else from the Hub; every score says from where.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_arch.core.errors import ConfigError, choice_error, nearest
from hf_arch.environment import temporarily
from hf_arch.evaluation.compat import is_group
from hf_arch.evaluation.items import item_rows, item_scores
from hf_arch.evaluation.lm_eval import ArchLM
from hf_arch.evaluation.offline import INSTALL, local_tasks, rows_origin, write_task_files
from hf_arch.evaluation.row_checks import check_rows
from hf_arch.evaluation.suites import OUR_TASKS, SUITES

ROWS = ("auto", "hub", "local")
_SEED = 1234  # lm_eval's default for torch and for few-shot examples


def load_tasks(
    names: Sequence[str],
    *,
    include_path: str | Path | None = None,
    rows: str = "auto",
    limit: int | None = None,
    num_fewshot: int | None = None,
) -> dict[str, Any]:
    """lm_eval's `TaskDict` of these tasks, groups, tags, suites and paths of task files; their rows are checked.

    Args:
        include_path: a folder of more task files, which win over those of the same name.
        rows: `local` only from this machine, `hub` only from the Hub, `auto` from here where they are here.
        limit: rows that will be scored. num_fewshot: solved examples before each; None is as each task says.

    Raises:
        ConfigError: an unknown name (with the nearest), rows that cannot be loaded, or that do not fit their task, or
            examples for a task that has none or too few.
    """
    if rows not in ROWS:
        raise choice_error("--rows", rows, ROWS)
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"--include-path: {include_path}: no such folder")
    wanted = list(dict.fromkeys(task for name in names for task in SUITES.get(name, (name,))))
    with _quiet(), TemporaryDirectory() as folder:
        places = [OUR_TASKS, *([write_task_files(Path(folder))] if rows != "hub" else [])]
        places += [Path(include_path)] if include_path is not None else []
        manager = TaskManager(include_path=places, include_defaults=False)
        if rows != "local" and not all(_stands_alone(manager, name) for name in wanted):
            manager = TaskManager(include_path=places)  # reads the fourteen thousand files of lm_eval
        for name in wanted:
            _check_name(name, manager, rows)
        try:
            loaded = manager.load(wanted)
        except ConfigError:
            raise
        except Exception as error:  # whatever datasets and the Hub raise where rows cannot be loaded
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(
                f"--tasks: the rows of {', '.join(wanted)} cannot be loaded ({reason[:160]}); rows of common tasks "
                f"without the Hub: {INSTALL}"
            ) from error
        for task in loaded["tasks"].values():
            check_rows(task, limit)
            _set_fewshot(task, num_fewshot)
    return loaded


def check_names(names: Sequence[str], include_path: str | Path | None = None) -> None:
    """Raises `ConfigError` for a task that neither lm_eval nor `include_path` has; loads no rows."""
    with _quiet():
        manager = TaskManager(include_path=[OUR_TASKS, *([Path(include_path)] if include_path is not None else [])])
        for name in names:
            _check_name(name, manager, "auto")


def _set_fewshot(task: Any, wanted: int | None) -> None:
    default = task.get_config("num_fewshot")
    number = (default or 0) if wanted is None else wanted
    if number:
        fixed = default == 0 or task.OUTPUT_TYPE == "loglikelihood_rolling"
        most = 0 if fixed else len(list(task.fewshot_docs())) - 1  # a row is no example of itself
        if number > most:
            raise ConfigError(
                f"--num-fewshot: {number} is not allowed for {task.config.task}; allowed: 0 to {most}; nearest: {most}"
            )
    task.set_config(key="num_fewshot", value=number)


def _stands_alone(manager: TaskManager, name: str) -> bool:
    """Whether a name means a task or a tag of the files read so far (a group may name tasks of others)."""
    entry = manager.task_index.get(name)
    return _is_file(name) or (entry is not None and not is_group(entry))


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _check_name(name: str, manager: TaskManager, rows: str) -> None:
    if name in manager.task_index or _is_file(name):
        return
    near = nearest(name, [*manager.all_tasks, *SUITES, "perplexity"])
    hint = f"nearest: {near!r}; " if near else ""
    where = "has rows on this machine" if rows == "local" else "is known"
    raise ConfigError(f"--tasks: no task {name!r} {where}; {hint}see `lm_eval ls tasks`, or give --include-path")


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Any],
    *,
    batch_size: int = 8,
    limit: int | None = None,
    rows: str = "auto",
    items: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """{task: {metric: value, `<metric>_stderr`, `samples`, `version`, `num_fewshot`, `rows`}} on tasks of `load_tasks`,
    and `truncated` where prompts are longer than the model takes, of how many rows: said on stderr too.

    Where answers are scored by likelihood, also `bits_per_byte` of the gold answer and, of choices,
    `margin`: its log-likelihood less the best wrong one's, in nats. `items`, where given, gets {task: a table of items}
    (`evaluation/items.py`). Progress goes to stderr. Values that are not defined (a standard error of one row) are left
    out.
    """
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed=_SEED)  # the same examples for every model
    with _quiet(), redirect_stdout(sys.stderr), torch.random.fork_rng():
        torch.manual_seed(_SEED)
        lm = ArchLM(model, tokenizer=tokenizer, batch_size=batch_size)
        # Closed forms where there are any; a bootstrap of so few draws is for the rest (perplexities).
        found = evaluate(lm, tasks, limit=limit, bootstrap_iters=100, log_samples=True)
    assert found is not None, "only the first of several processes has results"
    local = set(local_tasks()) if rows != "hub" else set()
    scores = {}
    for name, values in found["results"].items():
        task = tasks["tasks"].get(name)
        samples = found.get("samples", {}).get(name, ())
        table = None if task is None else item_rows(task, samples)
        cut = sum(any(map(lm.is_cut, sample["arguments"])) for sample in samples)
        if cut:
            print(
                f"{name}: {cut} of {len(samples)} prompts are longer than the {lm.max_length} tokens that the model "
                "takes; their beginnings were left out",
                file=sys.stderr,
            )
        if items is not None and table is not None:
            items[name] = table
        scores[name] = {
            **_metrics(values),
            **({} if table is None else item_scores(table)),
            "samples": found.get("n-samples", {}).get(name, {}).get("effective"),
            **({"truncated": cut} if cut else {}),
            "version": found.get("versions", {}).get(name),
            "num_fewshot": found.get("n-shot", {}).get(name),
            "rows": _origin(name, task, local) if task is not None else "see its tasks",
        }
    return scores


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """`acc,none` -> `acc`; the filter stays in the name where a task has several for one metric."""
    numbers = {key: value for key, value in values.items() if "," in key and isinstance(value, int | float)}
    names = [key.split(",")[0] for key in numbers]
    return {
        (name if names.count(name) == 1 else key.replace(",", "_")): float(value)
        for name, (key, value) in zip(names, numbers.items(), strict=True)
    }


def _origin(name: str, task: Any, local: set[str]) -> str:
    if task.config.custom_dataset is not None:
        return rows_origin(name) if name in local else "made by hf_arch"
    return f"{task.config.dataset_path}, {'test' if task.has_test_docs() else 'validation'} split"


def harness_version() -> str:
    """The installed version of lm_eval."""
    return metadata.version("lm_eval")


@contextmanager
def _quiet() -> Iterator[None]:
    """lm_eval warns of every task that replaces one of its own; datasets draws a bar for every file. Bootstraps run in
    this process, not in a pool that would fork it."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    bars = datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with temporarily({"DISABLE_MULTIPROC": "1"}, replace=True):
            yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
