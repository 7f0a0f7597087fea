"""The names in a run folder, where runs are found, and the rows of their metrics.

<suite>/<name>_<hash>/experiment_config.json   the whole recipe with the resolved model config (runs/record.py)
                     /results.json             the measured numbers, the status, the provenance (runs/record.py)
                     /metrics.jsonl            one object a logging or evaluation step
                     /evaluation.json          benchmark scores, from `hf-arch eval`
                     /items/<task>/            the same item by item (runs/items.py)
                     /checkpoints/  model/     what resumes the run, and what came of it
<suite>/experiment_suite_results.json          every run of the suite with its results (runs/suite.py)
<suite>/all_benchmark_results.json             the measured numbers alone, flat, one row a run
<suite>/claims.json                            what was claimed, and when (runs/registration.py)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import finite

CONFIG_FILE = "experiment_config.json"
RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
CHECKPOINTS_DIR = "checkpoints"
MODEL_DIR = "model"
SUITE_FILE = "experiment_suite_results.json"
BENCHMARK_FILE = "all_benchmark_results.json"
CLAIMS_FILE = "claims.json"


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a run, finished or not."""
    return (folder / RESULTS_FILE).is_file() or (folder / CONFIG_FILE).is_file()


def run_folders(root: Path) -> Iterator[Path]:
    """Run folders at or below `root`, in path order; what a run folder holds (checkpoints, model) is not searched."""
    for current, subfolders, _files in os.walk(root):
        if is_run(Path(current)):
            subfolders.clear()
            yield Path(current)
        subfolders.sort()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, in order; [] where the file is missing.

    A writer that was killed leaves a torn last line, which is dropped. After a resume from an earlier checkpoint the
    same steps come again: the later rows replace the earlier ones, so that a curve never runs backwards.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ConfigError(f"{path}: line {number} is not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: line {number}: expected a JSON object, found {type(row).__name__}")
        step = finite(row.get("step"))
        if step is not None and rows and (finite(rows[-1].get("step")) or 0) > step:
            rows = [kept for kept in rows if (finite(kept.get("step")) or 0) < step]
        rows.append(row)
    return rows
