"""`hf-arch eval`: the scores of a model, or of every run in a folder, kept with the run and gathered for the suite.

<run>/evaluation.json                    the scores of the run; a later evaluation adds tasks and replaces its own
<run>/items/<task>/items.parquet         the same item by item, for tests of two models on the same items
<suite>/all_benchmark_results.json       the numbers of every run, with these among them
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hf_arch.checkpoints.checkpoint import model_folder
from hf_arch.checkpoints.plugin_copies import load_plugins_of
from hf_arch.core.errors import ConfigError, nearest
from hf_arch.core.files import write_json
from hf_arch.core.formats import FILE_WIDTH
from hf_arch.core.one_writer import only_writer
from hf_arch.core.plugins import separate_plugins, used_plugins
from hf_arch.core.registry import METRICS
from hf_arch.evaluation.loading import load_model, parse_device, parse_dtype
from hf_arch.evaluation.metric_scores import score_metrics
from hf_arch.evaluation.text_loss import TextOptions, score_text
from hf_arch.runs.digest import DIGEST, ITEMS_DIGEST, seal_items, seal_scores
from hf_arch.runs.files import CHECKPOINTS_DIR, EVALUATION_FILE, is_run
from hf_arch.runs.items import drop_items, write_items
from hf_arch.runs.provenance import provenance
from hf_arch.runs.record import SCORED_WEIGHTS, RunRecord
from hf_arch.runs.suite import find_runs, write_suite_results

PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class EvalOptions:
    """What to score, and how.

    tasks: names of lm_eval's tasks, of suites, of plugins' metrics, or `perplexity`. average_last: the mean scores of a
    run's last so many checkpoints, instead of those of its final weights.
    """

    tasks: tuple[str, ...]
    batch_size: int = 8
    dtype: str = "auto"
    device: str | None = None
    limit: int | None = None
    include_path: str | None = None
    rows: str = "auto"
    num_fewshot: int | None = None
    text: TextOptions = field(default_factory=TextOptions)
    average_last: int | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("--tasks: no task given; e.g. --tasks hellaswag,perplexity")
        for name, value in (
            ("--batch-size", self.batch_size),
            ("--limit", self.limit),
            ("--average-last", self.average_last),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} is not allowed; allowed: at least 1; nearest: 1")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ConfigError(f"--num-fewshot: {self.num_fewshot} is not allowed; allowed: at least 0; nearest: 0")
        if self.num_fewshot and not self.harness_tasks:
            raise ConfigError(f"--num-fewshot: `{PERPLEXITY}` takes no examples; leave it out, or name other tasks")
        parse_dtype(self.dtype)
        parse_device(self.device)

    @property
    def harness_tasks(self) -> tuple[str, ...]:
        """Those that lm_eval scores."""
        return tuple(task for task in self.tasks if task != PERPLEXITY and task not in METRICS)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that are metrics of plugins."""
        return tuple(task for task in self.tasks if task in METRICS)


def evaluate_path(path: str, options: EvalOptions) -> dict[str, Any]:
    """Scores a model, or every finished run in a folder; writes `evaluation.json` into runs.

    Returns:
        One document: `model`, `architecture`, `parameters`, `results` {task: {metric: value}}, `settings`,
        `provenance`; for a folder of runs `{"runs": [...]}`, which `all_benchmark_results.json` there has too.

    Raises:
        ConfigError: an unknown task, rows or a model that cannot be loaded, a folder without finished runs.
    """
    runs = suite_runs(path)
    for folder in runs or [Path(path)]:  # whose plugins may have metrics that are named as tasks
        load_plugins_of(folder)
    tasks = None
    if options.harness_tasks:
        require_harness(options.harness_tasks)
        from hf_arch.evaluation.harness import load_tasks

        tasks = load_tasks(
            options.harness_tasks,
            include_path=options.include_path,
            rows=options.rows,
            limit=options.limit,
            num_fewshot=options.num_fewshot,
        )
    if runs is None:
        return _evaluate_model(path, options, tasks)
    documents = []
    for run in runs:
        print(f"{run.name}", file=sys.stderr)
        with separate_plugins():  # the runs may have been trained with different versions of one
            documents.append(_evaluate_model(str(run), options, tasks))
    write_suite_results(path)
    return {"suite": Path(path).name, "runs": documents}


def suite_runs(path: str) -> list[Path] | None:
    """The finished runs in a folder of runs; None where `path` is a single model.

    Raises:
        ConfigError: a folder with runs, none of them finished.
    """
    folder = Path(path)
    if not folder.is_dir() or is_run(folder) or (folder / "config.json").exists():
        return None
    found = find_runs(folder)
    if not found:
        return None
    finished = [run.path for run in found if run.status == "completed"]
    for run in found:
        if run.path not in finished:
            print(f"{run.path.name}: left out, it is {run.status}", file=sys.stderr)
    if not finished:
        raise ConfigError(f"{path}: none of its {len(found)} runs has finished")
    return finished


def _evaluate_model(path: str, options: EvalOptions, tasks: Any, run: str | None = None) -> dict[str, Any]:
    """The document of the model at `path`, which is a checkpoint of `run` where that is given."""
    device = parse_device(options.device)
    if options.average_last is not None:
        return _evaluate_checkpoints(path, options, tasks)
    model, tokenizer = load_model(path, dtype=parse_dtype(options.dtype), device=device)
    results: dict[str, Any] = {}
    items: dict[str, Any] = {}
    if tasks is not None:
        from hf_arch.evaluation.harness import score

        size, limit = options.batch_size, options.limit
        results.update(score(model, tokenizer, tasks, batch_size=size, limit=limit, rows=options.rows, items=items))
    if PERPLEXITY in options.tasks:
        results[PERPLEXITY] = score_text(run or path, model, tokenizer, options.text)
    if options.metrics:
        results |= score_metrics(run or path, model, tokenizer, options.metrics, options.text)
    document = {
        "model": path,
        "architecture": model.config.model_type.removeprefix("hfa_"),
        "parameters": model.num_parameters(),
        "settings": {
            "batch_size": options.batch_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "limit": options.limit,
        },
        "results": results,
        "provenance": {
            **provenance(torch.device(device), used_plugins(model.config.to_dict(), ())),
            **_harness_version(tasks),
        },
    }
    if is_run(Path(path)):
        for task, table in items.items():
            write_items(Path(path), task, table)
        _keep(Path(path), document)
    return document


def _evaluate_checkpoints(path: str, options: EvalOptions, tasks: Any) -> dict[str, Any]:
    """The document of a run whose scores are means over its last checkpoints. Items are of one model: earlier ones are
    removed with the score that they were of."""
    folders = last_checkpoints(Path(path), options.average_last or 1)
    one = replace(options, average_last=None)
    documents = [_evaluate_model(str(folder), one, tasks, run=path) for folder in folders]
    results = {}
    for task, last in documents[-1]["results"].items():
        entries = [document["results"][task] for document in documents]
        means = {
            name: sum(entry[name] for entry in entries) / len(entries)
            for name in metrics_of(last)
            if all(name in entry for entry in entries)
        }
        described = {name: value for name, value in last.items() if name not in metrics_of(last)}
        # A standard error over rows is not that of a mean over checkpoints of the same rows.
        results[task] = {**{k: v for k, v in described.items() if not k.endswith("_stderr")}, **means}
        results[task].pop("loss_by_position", None)
    steps = [int(folder.name.rpartition("-")[2]) for folder in folders]
    document = {**documents[-1], "model": path, "results": results}
    document["settings"] = {**document["settings"], "average_of_checkpoints": steps}
    for task in results:
        drop_items(Path(path), task)
    _keep(Path(path), document)
    return document


def last_checkpoints(run: Path, count: int) -> list[Path]:
    """The folders of the last `count` checkpoints of a run, the newest last. ConfigError where there are fewer."""
    found = sorted(
        (folder for folder in (run / CHECKPOINTS_DIR).glob("checkpoint-*") if (folder / "config.json").is_file()),
        key=lambda folder: int(folder.name.rpartition("-")[2]),
    )
    if len(found) < count:
        raise ConfigError(
            f"--average-last: {run.name} has {len(found)} checkpoints, not {count}; allowed: 1 to {len(found)} "
            "(training.save_steps and training.save_total_limit say how many are kept)"
        )
    return found[-count:]


def _keep(run: Path, document: dict[str, Any]) -> None:
    """Adds the scores to the run's own, each with the settings it was made under and the steps of the weights."""
    with only_writer(model_folder(run), wait=True):  # of two evaluations at once each keeps what the other has added
        _add(run, document)


def _add(run: Path, document: dict[str, Any]) -> None:
    record = RunRecord.load(run)
    made = {"settings": document["settings"], SCORED_WEIGHTS: {"steps": record.steps}}
    scores = {task: {**values, **made} for task, values in document["results"].items()}
    tasks = {**record.benchmarks, **scores}
    digest = seal_scores(run, tasks, scores)
    sealed = {DIGEST: digest, ITEMS_DIGEST: seal_items(run, scores)}
    write_json(run / EVALUATION_FILE, {**document, "model": run.name, "results": tasks, **sealed})


def print_scores(document: dict[str, Any]) -> None:
    """A table on stdout: a line for each model, task and metric, with its standard error and the rows it is of."""
    table = Table(box=None, pad_edge=False)
    for column in ("model", "task", "metric"):
        table.add_column(column, no_wrap=True)
    for column in ("value", "±", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("rows", overflow="fold")
    for model in document.get("runs", [document]):
        for task, values in model["results"].items():
            for metric, value in metrics_of(values).items():
                error = values.get(f"{metric}_stderr")
                count = values.get("samples") or values.get("tokens")
                table.add_row(
                    Path(model["model"]).name,
                    task,
                    metric,
                    f"{value:.4f}",
                    "" if error is None else f"{error:.4f}",
                    f"{count:,}" if count else "",
                    str(values["rows"]),
                )
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


_NOT_METRICS = {"samples", "truncated", "version", "num_fewshot", "tokens", "window", "stride", "documents"}


def metrics_of(values: dict[str, Any]) -> dict[str, float]:
    """The measured numbers of a task's entry, without their errors and without what only describes it."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and name not in _NOT_METRICS and not name.endswith("_stderr")
    }


def _harness_version(tasks: Any) -> dict[str, str]:
    if tasks is None:
        return {}
    from hf_arch.evaluation.harness import harness_version

    return {"lm_eval": harness_version()}


def require_harness(tasks: Sequence[str]) -> None:
    """Raises `ConfigError`, which names the first of these tasks, where lm_eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        near = next((task for task in tasks if nearest(task, [PERPLEXITY])), None)
        hint = "" if near is None else f"; nearest without it to {near!r}: {PERPLEXITY!r}"
        raise ConfigError(
            f"--tasks: {tasks[0]!r} needs lm-evaluation-harness, as all but `{PERPLEXITY}` do: "
            f"pip install 'hf-arch[eval]'{hint}",
            field="--tasks",
            value=tasks[0],
        )


def split_names(text: str | Sequence[str]) -> tuple[str, ...]:
    """Names from `a,b`, each once."""
    parts = text.split(",") if isinstance(text, str) else text
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
