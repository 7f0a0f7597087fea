"""What `hf-arch eval` would take: each model and task timed on a few rows; nothing is written.

Rows of a task that are on this machine are loaded, those of the Hub are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_arch.core.errors import ConfigError
from hf_arch.evaluation.loading import load_model, parse_device, parse_dtype
from hf_arch.evaluation.model_scores import PERPLEXITY, EvalOptions, last_checkpoints, require_harness, suite_runs
from hf_arch.evaluation.text_loss import count_texts, score_text
from hf_arch.ops.native import keep_nothing
from hf_arch.runs.files import is_run

ROWS = (4, 16)
"""Rows of each task that are scored to time it, twice: what a call takes besides its rows is then in neither."""
ROW_BYTES = 64
"""Of what a run keeps of each scored row, at most."""


def forecast_eval(path: str, options: EvalOptions) -> dict[str, Any]:
    """Models, tasks with their rows and seconds, and totals, as one document with the keys that every dry run has.

    Raises:
        ConfigError: as `evaluate_path`; rows of a task that are on the Hub alone are a warning.
    """
    keep_nothing()
    runs = suite_runs(path)
    tasks, warnings = _tasks(options)
    models = [_model(str(run), options, tasks, warnings) for run in runs] if runs is not None else []
    models = models or [_model(path, options, tasks, warnings)]
    seconds = [task["seconds"] for model in models for task in model["tasks"].values()]
    unknown = len(warnings) > 0 or None in seconds
    return {
        "dry_run": True,
        "device": str(parse_device(options.device)),
        "hours": None if unknown else sum(seconds) / 3600,
        "basis": f"measured now on up to {ROWS[1]} rows of each task",
        "memory_bytes": max(model["memory_bytes"] for model in models),
        "disk_bytes": sum(model["disk_bytes"] for model in models),
        "warnings": list(dict.fromkeys(warnings)),
        "models": models,
    }


def _tasks(options: EvalOptions) -> tuple[Any, list[str]]:
    """lm_eval's tasks whose rows are here, and what is said of the others."""
    if not options.harness_tasks:
        return None, []
    require_harness(options.harness_tasks)
    from hf_arch.evaluation.harness import check_names, load_tasks
    from hf_arch.evaluation.offline import local_tasks
    from hf_arch.evaluation.suites import SUITES

    wanted = list(dict.fromkeys(task for name in options.harness_tasks for task in SUITES.get(name, (name,))))
    given = {"include_path": options.include_path, "limit": options.limit, "num_fewshot": options.num_fewshot}
    here: list[str] = []
    warnings: list[str] = []
    checked = False
    for name in wanted:
        try:
            load_tasks([name], rows="local", **given)  # type: ignore[arg-type]
            here.append(name)
        except ConfigError:
            if options.rows == "local" or name in local_tasks():
                raise
            if not checked:
                check_names(wanted, options.include_path)
                checked = True
            warnings.append(f"task {name!r}: its rows are on the Hub, so its time is not known")
    return (load_tasks(here, rows="local", **given) if here else None), warnings  # type: ignore[arg-type]


def _model(path: str, options: EvalOptions, tasks: Any, warnings: list[str]) -> dict[str, Any]:
    """One model: its size, and the rows and seconds of each task."""
    times = 1
    folder = path
    if options.average_last is not None:
        folders = last_checkpoints(Path(path), options.average_last)
        times, folder = len(folders), str(folders[-1])
    device = parse_device(options.device)
    model, tokenizer = load_model(folder, dtype=parse_dtype(options.dtype), device=device)
    found: dict[str, dict[str, Any]] = {}
    if tasks is not None:
        from hf_arch.evaluation.harness import score

        for name, task in tasks["tasks"].items():
            one: Mapping[str, Any] = {**tasks, "tasks": {name: task}}
            rows = len(list(task.eval_docs))
            rows = min(rows, options.limit or rows)

            def score_rows(count: int, one: Mapping[str, Any] = one) -> None:
                score(model, tokenizer, one, batch_size=options.batch_size, limit=count, rows="local")

            found[name] = {"rows": rows, "seconds": times * _seconds(score_rows, rows)}
    if PERPLEXITY in options.tasks:
        whole = count_texts(path, options.text)
        if whole is None:
            warnings.append(f"task {PERPLEXITY!r}: its text is not prepared on this machine, so its time is not known")
            found[PERPLEXITY] = {"rows": None, "seconds": None}
        else:

            def score_documents(count: int) -> None:
                score_text(path, model, tokenizer, replace(options.text, limit=count))

            found[PERPLEXITY] = {"rows": whole, "seconds": times * _seconds(score_documents, whole)}
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return {
        "model": path,
        "parameters": model.num_parameters(),
        "memory_bytes": held + _activations(model, options.batch_size),
        "disk_bytes": ROW_BYTES * sum(task["rows"] or 0 for task in found.values()) if is_run(Path(path)) else 0,
        "tasks": found,
    }


def _seconds(score: Callable[[int], None], rows: int) -> float:
    """What `score(rows)` would take, from what it takes for a few rows and for a few more."""
    few, more = (min(count, rows) for count in ROWS)
    score(few)
    times = []
    for count in (few, more):
        started = time.perf_counter()
        score(count)
        times.append(time.perf_counter() - started)
    if more == rows:
        return times[1]
    slope = (times[1] - times[0]) / (more - few)
    # On a busy machine the longer call may be the quicker one: then all of its time counts as its rows'.
    return times[1] + (slope if slope > 0 else times[1] / more) * (rows - more)


def _activations(model: Any, batch_size: int) -> int:
    """Of scoring a batch at the model's longest context: logits in fp32, which are the largest part of it."""
    length = min(getattr(model.config, "max_position_embeddings", None) or 2048, 2048)
    return batch_size * length * model.config.vocab_size * torch.finfo(torch.float32).bits // 8
