"""What `hf-arch compare` does."""

from __future__ import annotations

from pathlib import Path

from hf_arch.analysis.compare import compare_runs
from hf_arch.cli.output import print_json
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_atomic
from hf_arch.report.table import print_comparison
from hf_arch.runs.suite import latest as latest_runs


def compare_command(
    runs: list[str],
    latest: int | None,
    results_dir: str | None,
    csv: str | None,
    as_json: bool,
    metric: str | None = None,
) -> int:
    """`hf-arch compare`: prints the comparison, and returns the exit code. ConfigError for a user's mistake."""
    if runs and latest is not None:
        raise ConfigError("compare: RUN... and --latest were both given; allowed: one of them")
    if latest is not None:
        comparison = compare_runs(latest_runs(results_dir or "results", latest), metric=metric)
    elif runs:
        comparison = compare_runs([_resolve(run, results_dir) for run in runs], metric=metric)
    elif results_dir is not None:
        comparison = compare_runs(results_dir, metric=metric)
    else:
        raise ConfigError("compare: no runs given; name run or results folders, or give --latest N or --results-dir D")
    if csv is not None:
        write_atomic(csv, comparison.frame().to_csv(index=False))
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_comparison(comparison)
    return 0


def _resolve(run: str, results_dir: str | None) -> Path:
    """A run or suite folder as given, or by its name inside the results folder."""
    candidates = [Path(run), *([Path(results_dir) / run] if results_dir else [])]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ConfigError(
        f"run: {run!r} is not a folder (looked for {', '.join(str(candidate) for candidate in candidates)})"
    )
