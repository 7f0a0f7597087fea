"""What an earlier start of a run has left in its folder, for the one that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json
from hf_arch.recipe.recipe import RUN_FACTS
from hf_arch.runs.files import CONFIG_FILE, METRICS_FILE, RESULTS_FILE, read_metrics
from hf_arch.training.first_look import FIRST_LOOK
from hf_arch.training.precision import Precision, decided


def check_folder(folder: Path, resume: bool) -> None:
    """Raises `ConfigError` where `folder` cannot take this run: it is a file, or holds a run that is not to be
    continued.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output-dir: {folder} is a file")
    if not resume and (folder / CONFIG_FILE).exists():
        state = "finished" if is_finished(folder) else "unfinished"
        raise ConfigError(f"--output-dir: {folder} contains a run already ({state}); use --resume or another folder")


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` completed."""
    results = folder / RESULTS_FILE
    return results.is_file() and read_json(results).get("status") == "completed"


def earlier_look(folder: Path) -> dict[str, Any]:
    """What was measured before the first step of a run that goes on."""
    results = folder / RESULTS_FILE
    written = read_json(results) if results.is_file() else {}
    return {key: written[key] for key in FIRST_LOOK if key in written}


def decided_precision(folder: Path) -> Precision | None:
    """What `auto` was for the run in `folder` before: its set decided it, or the run itself when it was begun."""
    config, results = folder / CONFIG_FILE, folder / RESULTS_FILE
    if config.is_file() and (before := decided((read_json(config).get(RUN_FACTS) or {}).get("precision"))) is not None:
        return before
    name = read_json(results).get("precision") if results.is_file() else None
    return decided({"name": name, "reason": "the run was begun in it"})


def earlier_seconds(folder: Path) -> float:
    """What the run has taken so far, also where it was killed: then the last row of its metrics knows."""
    results = folder / RESULTS_FILE
    written = [read_json(results)] if results.is_file() else []
    return max(
        (float(row.get("wall_seconds") or 0.0) for row in [*written, *read_metrics(folder / METRICS_FILE)]), default=0.0
    )
