"""All runs of a folder: found, read, and gathered into the two files of the suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_json
from hf_arch.runs.files import BENCHMARK_FILE, CONFIG_FILE, RESULTS_FILE, SUITE_FILE, run_folders
from hf_arch.runs.numbers import Reader
from hf_arch.runs.record import RunRecord, numbers_for
from hf_arch.runs.registration import current_hypotheses


def find_runs(results_dir: str | Path) -> list[RunRecord]:
    """Every run at or below a folder, in path order; those that only chose a learning rate for others are left out,
    unless there are no others. ConfigError where the folder or a run in it is missing."""
    root = Path(results_dir)
    if not root.is_dir():
        raise ConfigError(f"results folder: {root} does not exist or is not a folder")
    runs = [RunRecord.load(folder) for folder in run_folders(root)]
    if not runs:
        raise ConfigError(
            f"results folder: no runs in {root} (looked for {RESULTS_FILE} or {CONFIG_FILE}, at any depth)"
        )
    return [run for run in runs if run.experiment.get("role") != "selection"] or runs


def latest(results_dir: str | Path, n: int) -> list[RunRecord]:
    """The `n` runs written last, newest first."""
    if n < 1:
        raise ConfigError(f"latest: {n} is not allowed; allowed: a number of runs >= 1")
    return sorted(find_runs(results_dir), key=lambda run: run.modified, reverse=True)[:n]


def load_runs(source: str | Path | Sequence[str | Path | RunRecord]) -> list[RunRecord]:
    """Runs from one folder, or from several run folders, suite folders and runs already read; each run once."""
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    if not sources:
        raise ConfigError("runs: none given; name at least one run or results folder")
    found: dict[Path, RunRecord] = {}
    for item in sources:
        for run in [item] if isinstance(item, RunRecord) else find_runs(item):
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def write_suite_results(
    results_dir: str | Path, skipped: Mapping[str, str] | None = None, runs: Sequence[RunRecord] | None = None
) -> tuple[Path, Path]:
    """Writes both suite-level files from `runs`, by default those found in the folder; returns their paths.

    `skipped` gives the reason for each run that the recipe's matrix holds but that cannot be.
    """
    root = Path(results_dir)
    runs = find_runs(root) if runs is None else runs
    suite = {
        "suite": root.name,
        "hypotheses": current_hypotheses(runs),
        "status": dict(Counter(run.status for run in runs)),
        "skipped": [{"name": name, "reason": reason} for name, reason in (skipped or {}).items()],
        "runs": [{"folder": run.path.relative_to(root), **run.to_results()} for run in runs],
    }
    benchmarks = {"suite": root.name, "results": [flat_row(run) for run in runs]}
    return write_json(root / SUITE_FILE, suite), write_json(root / BENCHMARK_FILE, benchmarks)


def flat_row(run: RunRecord) -> dict[str, Any]:
    """One run as a flat row: what it is, then every measured number (None where it was not measured)."""
    return {
        "name": run.name,
        "architecture": run.architecture,
        "architecture_name": run.architecture_name,
        "seed": run.seed,
        "learning_rate": run.learning_rate,
        "status": run.status,
        **{number.key: run.numbers.get(number.key) for number in numbers_for(Reader.ROWS, [run])},
        "benchmarks": run.benchmarks,
        "path": str(run.path),
    }
