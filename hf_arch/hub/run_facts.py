"""What a run folder tells a model card: its numbers, recipe, curve, sample, and the comparison that it was part of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_arch.analysis.columns import COLUMNS, MISSING, byte_size, duration, quantity
from hf_arch.analysis.comparison import compare_runs
from hf_arch.runs.store import EVALUATION_FILE, MODEL_DIR, SUITE_FILE, RunResult, finite, is_run, read_json

_SECTIONS = ("model", "data", "training", "evaluation")  # of a recipe
_PATH = re.compile(r"[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")


@dataclass(frozen=True)
class Benchmark:
    """One number of one task: as it is written (with its standard error), how many rows it is of, and which."""

    task: str
    metric: str
    value: float
    text: str
    count: str
    rows: str


def find_run(path: str | Path) -> RunResult | None:
    """The run that a model came from: `path` is its folder, or its `model/`."""
    folder = Path(path)
    if folder.name == MODEL_DIR and not is_run(folder):
        folder = folder.parent
    return RunResult.load(folder) if is_run(folder) else None


def read_benchmarks(run: RunResult) -> list[Benchmark]:
    """The numbers in the run's `evaluation.json` (`hf-arch eval`); [] where it was not evaluated."""
    from hf_arch.evaluation.model_scores import metrics_of

    if not (run.path / EVALUATION_FILE).is_file():
        return []
    found = []
    for task, values in read_json(run.path / EVALUATION_FILE).get("results", {}).items():
        for metric, value in metrics_of(values).items():
            error = finite(values.get(f"{metric}_stderr"))
            text = f"{value:.4g}" + (f" ± {error:.2g}" if error else "")
            count = values.get("samples") or values.get("tokens")
            first = "first " if values.get("settings", {}).get("limit") else ""
            rows = table_cell(str(values.get("rows", "")))
            found.append(Benchmark(task, metric, value, text, f"{first}{count:,}" if count else "", rows))
    return found


def numbers_at(run: RunResult, step: int) -> dict[str, float]:
    """What was measured at one step, under the names of results.json."""
    names = {
        "val_loss": "final_val_loss",
        "val_perplexity": "final_val_perplexity",
        "bits_per_byte": "bits_per_byte",
        "loss": "final_train_loss",
        "tokens_seen": "tokens_seen",
    }
    rows = [row for row in run.metrics if row.get("step") == step]
    found = ((name, finite(row.get(key))) for row in rows for key, name in names.items())
    return {name: value for name, value in found if value is not None}


def measured_rows(numbers: dict[str, float]) -> list[tuple[str, str]]:
    """(what, value with its unit) of the numbers that there are."""
    formats: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("final_val_loss", "validation loss (nats a token)", "{:.4f}".format),
        ("final_val_perplexity", "validation perplexity", "{:.2f}".format),
        ("bits_per_byte", "bits a byte", "{:.4f}".format),
        ("final_train_loss", "training loss (nats a token)", "{:.4f}".format),
        ("tokens_seen", "tokens trained on", quantity),
        ("train_tokens_per_second", "training speed", lambda value: f"{quantity(value)} tokens/s"),
        ("decode_tokens_per_second", "generation speed", lambda value: f"{quantity(value)} tokens/s"),
        ("mfu", "model FLOPs utilisation", "{:.1%}".format),
        ("peak_memory_bytes", "peak memory in training", byte_size),
        ("wall_seconds", "wall time", duration),
    )
    return [(title, show(numbers[key])) for key, title, show in formats if key in numbers]


def machine(run: RunResult) -> str | None:
    """Where it was measured: device, precision, versions."""
    origin = run.provenance
    versions = ", ".join(f"{name} {version}" for name, version in (origin.get("versions") or {}).items())
    parts = [
        f"on {origin['device']}" if origin.get("device") else "",
        f"in {run.results['precision']}" if run.results.get("precision") else "",
        f"seed {run.seed}" if run.seed is not None else "",
        f"hf_arch {origin['hf_arch']}" if origin.get("hf_arch") else "",
        versions,
    ]
    kept = ", ".join(filter(None, parts))
    return f"Measured {kept}." if kept else None


def draw_curve(run: RunResult, path: Path) -> str | None:
    """Draw loss against tokens; returns what the image shows, or None where there are not enough points."""
    from hf_arch.report.figures import figures
    from hf_arch.report.plots import write_pngs

    curves = figures(compare_runs([run])).get("Loss curves")
    if not curves:
        return None
    (written,) = write_pngs(curves[:1], path.parent)
    written.replace(path)
    return f"{curves[0].title}. {curves[0].alt}"


def recipe_text(config: dict[str, Any]) -> str | None:
    """The recipe's sections that decide the model, as YAML; of files only the names."""
    sections = {name: without_paths(config[name]) for name in _SECTIONS if config.get(name)}
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True).rstrip() if sections else None


def without_paths(value: Any) -> Any:
    """`value` with the name of each file in the place of its path."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and _PATH.match(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def comparison_of(run: RunResult) -> dict[str, Any] | None:
    """The table and the audit of the set that this run belongs to."""
    if not (run.path.parent / SUITE_FILE).is_file():
        return None
    comparison = compare_runs(run.path.parent)
    cells = {column: [column.cell(comparison, group) for group in comparison.groups] for column in COLUMNS}
    shown = [column for column in COLUMNS if set(cells[column]) != {MISSING}]
    rows = [
        [table_cell(group.name), *(table_cell(cells[column][index]) for column in shown)]
        for index, group in enumerate(comparison.groups)
    ]
    told = [finding for finding in comparison.findings if finding.severity != "ok"]
    violations = sum(finding.severity == "violation" for finding in told)
    return {
        "headline": comparison.headline,
        "titles": ["", *(column.title for column in shown)],
        "rows": rows,
        "findings": told,
        "verdict": f"{violations} violation{'s' * (violations > 1)}." if violations else "no violation.",
    }


def sample_of(run: RunResult) -> dict[str, str] | None:
    sample = run.results.get("sample")
    if not isinstance(sample, dict) or not sample.get("text"):
        return None
    quoted = "\n".join(f"    {line}" for line in str(sample["text"]).strip("\n").splitlines())
    return {"prompt": one_line(str(sample.get("prompt", ""))), "text": quoted}


def one_line(text: str) -> str:
    return " ".join(str(text).split())


def table_cell(text: str) -> str:
    """`text` where a bar would end a cell of a table."""
    return text.replace("|", "\\|")
