"""Results on disk: a folder a run, read back typed, written so that a crash leaves the old file or the new one.

    <suite>/<name>_<hash>/experiment_config.json   the whole recipe with the resolved model config
                         /results.json             the measured numbers, the status and the provenance
                         /metrics.jsonl            one object a logging or evaluation step
                         /evaluation.json          benchmark scores, from `hf-arch eval`
                         /checkpoints/  model/     what resumes the run, and what came of it
    <suite>/experiment_suite_results.json          every run of the suite with its results
    <suite>/all_benchmark_results.json             the measured numbers alone, flat, one row a run

A key that is missing reads as None; JSON that cannot be parsed is a one-line error naming the file, because a
comparison that leaves out a run in silence is worth less than none.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError

CONFIG_FILE = "experiment_config.json"
RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
CHECKPOINTS_DIR = "checkpoints"
MODEL_DIR = "model"
SUITE_FILE = "experiment_suite_results.json"
BENCHMARK_FILE = "all_benchmark_results.json"

STATUSES = ("completed", "failed", "interrupted", "running")
NUMBERS = (
    "final_train_loss",
    "final_val_loss",
    "final_val_perplexity",
    "bits_per_byte",
    "accuracy",
    "params_total",
    "params_active",
    "params_embedding",
    "flops_per_token",
    "state_bytes",
    "tokens_seen",
    "train_tokens_per_second",
    "decode_tokens_per_second",
    "peak_memory_bytes",
    "wall_seconds",
    "mfu",
)
"""Keys of results.json that hold one measured number each: nats, bits, counts, bytes, tokens/s, seconds, a fraction."""


def finite(value: object) -> float | None:
    """`value` as a float where it is a finite number, else None (also for booleans, NaN and infinities)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def to_jsonable(value: Any) -> Any:
    """`value` with paths as text and NaN or infinities as null, so that any JSON parser can read what is written."""
    if isinstance(value, dict):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def write_text_atomic(path: str | Path, text: str) -> Path:
    """Writes `text` through a temporary file in the same folder, fsync and rename; readers see all of it or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes 0600, which other users of a shared results folder could not read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_json_atomic(path: str | Path, payload: Any) -> Path:
    """`payload` as indented strict JSON (NaN becomes null), atomically."""
    return write_text_atomic(path, json.dumps(to_jsonable(payload), indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. ConfigError naming the file where it is missing, torn, or not an object."""
    path = Path(path)
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(payload, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(payload).__name__}")
    return payload


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


@dataclass(frozen=True, eq=False)
class RunResult:
    """One run as it lies on disk, equal only to itself. `numbers` holds its finite measured numbers by their keys."""

    path: Path
    name: str
    architecture: str
    architecture_name: str
    status: str
    seed: int | None
    learning_rate: float | None
    numbers: dict[str, float]
    config: dict[str, Any] = field(repr=False)
    results: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> RunResult:
        """Reads a run folder. ConfigError where it holds no run, where its JSON is corrupt or a number is none."""
        folder = Path(folder)
        if not is_run(folder):
            raise ConfigError(f"{folder}: not a run folder (neither {RESULTS_FILE} nor {CONFIG_FILE} in it)")
        config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).exists() else {}
        results_file = folder / RESULTS_FILE
        results = read_json(results_file) if results_file.exists() else {}
        for key in ("seed", "learning_rate", *NUMBERS):
            value = results.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ConfigError(f"{results_file}: {key}: expected a number or null, found {value!r}")
        status = str(results.get("status", "running"))
        if status not in STATUSES:
            raise ConfigError(f"{results_file}: status: {status!r} is not known; allowed: {', '.join(STATUSES)}")
        model, training = _section(config, "model"), _section(config, "training")
        written = (
            results.get("name") or _section(config, "run").get("name") or _section(config, "experiment").get("name")
        )
        architecture = str(results.get("architecture") or model.get("architecture") or "unknown")
        seed = finite(_first(results.get("seed"), config.get("seed"), training.get("seed")))
        return cls(
            path=folder,
            name=group_name(str(written or re.sub(r"_[0-9a-f]{6,}$", "", folder.name))),
            architecture=architecture,
            architecture_name=str(results.get("architecture_name") or architecture),
            status=status,
            seed=None if seed is None else int(seed),
            learning_rate=finite(_first(results.get("learning_rate"), training.get("learning_rate"))),
            numbers={key: number for key in NUMBERS if (number := finite(results.get(key))) is not None},
            config=config,
            results=results,
        )

    @property
    def completed(self) -> bool:
        """Whether the run ended well *and* its validation loss is a number: the only runs that enter statistics."""
        return self.status == "completed" and "final_val_loss" in self.numbers

    @property
    def hypothesis(self) -> str:
        """What was expected, in the words of the recipe; empty where nothing was."""
        return str(self.results.get("hypothesis") or self.experiment.get("hypothesis") or "").strip()

    @property
    def experiment(self) -> dict[str, Any]:
        """The recipe's `experiment` section, with what the set wrote about itself in `run`: its baseline and match."""
        return {**_section(self.config, "experiment"), **_section(self.config, "run")}

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, commit, device, threads, command, exit reason."""
        return _section(self.results, "provenance")

    @property
    def components(self) -> dict[str, Any]:
        """The component table of the start-up report."""
        return _section(self.results, "components")

    @property
    def label(self) -> str:
        """How sentences name this run: its name and seed."""
        return self.name if self.seed is None else f"{self.name} (seed {self.seed})"

    @property
    def modified(self) -> float:
        """Time of the last write to its results (or its config, before there are any), in seconds since the epoch."""
        results = self.path / RESULTS_FILE
        return (results if results.exists() else self.path / CONFIG_FILE).stat().st_mtime

    @cached_property
    def benchmarks(self) -> dict[str, dict[str, Any]]:
        """{task: {metric: value}} of evaluation.json, read on first use; empty where nothing was evaluated."""
        file = self.path / EVALUATION_FILE
        return _section(read_json(file), "results") if file.is_file() else {}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, read on first use."""
        return read_metrics(self.path / METRICS_FILE)


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


def find_runs(results_dir: str | Path) -> list[RunResult]:
    """Every run at or below a folder, in path order. ConfigError where the folder or a run in it is missing."""
    root = Path(results_dir)
    if not root.is_dir():
        raise ConfigError(f"results folder: {root} does not exist or is no folder")
    runs = [RunResult.load(folder) for folder in run_folders(root)]
    if not runs:
        raise ConfigError(
            f"results folder: no runs in {root} (looked for {RESULTS_FILE} or {CONFIG_FILE}, at any depth)"
        )
    return runs


def latest(results_dir: str | Path, n: int) -> list[RunResult]:
    """The `n` runs written last, newest first."""
    if n < 1:
        raise ConfigError(f"latest: {n} is not allowed; allowed: a number of runs >= 1")
    return sorted(find_runs(results_dir), key=lambda run: run.modified, reverse=True)[:n]


def load_runs(source: str | Path | Sequence[str | Path | RunResult]) -> list[RunResult]:
    """Runs from one folder, or from several run folders, suite folders and runs already read; each run once."""
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    if not sources:
        raise ConfigError("runs: none given; name at least one run or results folder")
    found: dict[Path, RunResult] = {}
    for item in sources:
        for run in [item] if isinstance(item, RunResult) else find_runs(item):
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def write_suite_results(results_dir: str | Path, skipped: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """Writes both suite-level files from the runs found in the folder; returns their paths.

    `skipped` gives the reason for each run that the recipe's matrix holds but that cannot be.
    """
    root = Path(results_dir)
    runs = find_runs(root)
    suite = {
        "suite": root.name,
        "hypotheses": hypotheses(runs),
        "status": dict(Counter(run.status for run in runs)),
        "skipped": [{"name": name, "reason": reason} for name, reason in (skipped or {}).items()],
        "runs": [{"folder": run.path.relative_to(root), "status": run.status, **run.results} for run in runs],
    }
    benchmarks = {"suite": root.name, "results": [flat_row(run) for run in runs]}
    return write_json_atomic(root / SUITE_FILE, suite), write_json_atomic(root / BENCHMARK_FILE, benchmarks)


def flat_row(run: RunResult) -> dict[str, Any]:
    """One run as a flat row: what it is, then every measured number (None where it was not measured)."""
    return {
        "name": run.name,
        "architecture": run.architecture,
        "architecture_name": run.architecture_name,
        "seed": run.seed,
        "learning_rate": run.learning_rate,
        "status": run.status,
        **{key: run.numbers.get(key) for key in NUMBERS},
        "benchmarks": run.benchmarks,
        "path": str(run.path),
    }


def hypotheses(runs: Iterable[RunResult]) -> list[str]:
    """The distinct hypotheses of these runs, in order of appearance."""
    return list(dict.fromkeys(run.hypothesis for run in runs if run.hypothesis))


def group_name(name: str) -> str:
    """The name without what a matrix appended for the learning rate or the seed: these repeat a run, and tune it."""
    return re.sub(r"-(learning_rate|seed)-\d[\d.]*(e[+-]?\d+)?", "", name)


def _section(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
