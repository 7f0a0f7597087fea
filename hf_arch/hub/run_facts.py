"""What a run folder tells a model card: its numbers, recipe, curve, sample, and the comparison that it was part of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_arch.analysis.columns import filled_columns
from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.comparison import Comparison
from hf_arch.analysis.verdicts import Verdict
from hf_arch.core.files import finite
from hf_arch.runs.files import MODEL_DIR, SUITE_FILE, is_run
from hf_arch.runs.numbers import Reader
from hf_arch.runs.record import RunRecord, numbers_for

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


def find_run(path: str | Path) -> RunRecord | None:
    """The run that a model came from: `path` is its folder, or its `model/`."""
    folder = Path(path)
    if folder.name == MODEL_DIR and not is_run(folder):
        folder = folder.parent
    return RunRecord.load(folder) if is_run(folder) else None


def read_benchmarks(run: RunRecord) -> list[Benchmark]:
    """The numbers in the run's `evaluation.json` (`hf-arch eval`); [] where it was not evaluated."""
    from hf_arch.evaluation.model_scores import metrics_of

    found = []
    for task, values in run.benchmarks.items():
        for metric, value in metrics_of(values).items():
            error = finite(values.get(f"{metric}_stderr"))
            text = f"{value:.4g}" + (f" ± {error:.2g}" if error else "")
            count = values.get("samples") or values.get("tokens")
            first = "first " if values.get("settings", {}).get("limit") else ""
            averaged = values.get("settings", {}).get("average_of_checkpoints")
            of = f", mean over the checkpoints of steps {', '.join(map(str, averaged))}" if averaged else ""
            rows = table_cell(f"{values.get('rows', '')}{of}")
            found.append(Benchmark(task, metric, value, text, f"{first}{count:,}" if count else "", rows))
    return found


def numbers_at(run: RunRecord, step: int) -> dict[str, float]:
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


def measured_rows(run: RunRecord | None, numbers: dict[str, float]) -> list[tuple[str, str]]:
    """(what, with its unit; value) of the numbers that there are."""
    return [
        (number.label, number.show(numbers[number.key]))
        for number in numbers_for(Reader.CARD, [run] if run else [])
        if number.key in numbers
    ]


def machine(run: RunRecord) -> str | None:
    """Where it was measured: device, precision, versions."""
    origin = run.provenance
    versions = ", ".join(f"{name} {version}" for name, version in (origin.get("versions") or {}).items())
    parts = [
        f"on {origin['device']}" if origin.get("device") else "",
        f"in {run.precision}" if run.precision else "",
        f"seed {run.seed}" if run.seed is not None else "",
        f"hf_arch {origin['hf_arch']}" if origin.get("hf_arch") else "",
        versions,
    ]
    kept = ", ".join(filter(None, parts))
    return f"Measured {kept}." if kept else None


def draw_curve(run: RunRecord, path: Path) -> str | None:
    """Draw loss against tokens; returns what the image shows, or None where there are not enough points."""
    from hf_arch.report.figures import figures
    from hf_arch.report.plots import write_png

    curves = figures(compare_runs([run])).get("Loss curves")
    if not curves:
        return None
    write_png(curves[0], path)
    return f"{curves[0].title}. {curves[0].alt}"


def recipe_text(config: Mapping[str, Any]) -> str | None:
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


def comparison_of(run: RunRecord) -> dict[str, Any] | None:
    """The table and the audit of the set that this run belongs to."""
    if not (run.path.parent / SUITE_FILE).is_file():
        return None
    comparison = compare_runs(run.path.parent)
    shown = filled_columns(comparison)
    rows = [
        [table_cell(group.name), *(table_cell(column.cell(comparison, group)) for column in shown)]
        for group in comparison.groups
    ]
    told = [finding for finding in comparison.findings if finding.severity != "ok"]
    violations = sum(finding.severity == "violation" for finding in told)
    return {
        "headline": comparison.headline,
        "claims": [line for verdict in comparison.verdicts for line in _claim_lines(comparison, verdict)],
        "titles": ["", *(column.title for column in shown)],
        "rows": rows,
        "findings": told,
        "verdict": f"{violations} violation{'s' * (violations > 1)}." if violations else "no violation.",
    }


def _claim_lines(comparison: Comparison, verdict: Verdict) -> list[str]:
    """A claim with its outcome, when it was made, and what controls leave of it."""
    when = f" ({verdict.registration.sentence})" if verdict.registration.sentence else ""
    controls = [c.sentence for c in comparison.controls if c.claim == verdict.claim]
    return [
        f"{verdict.claim}: **{verdict.outcome}**{when}. {verdict.evidence}",
        *(f"With controls, of {verdict.claim}: {sentence}" for sentence in controls),
    ]


def sample_of(run: RunRecord) -> dict[str, str] | None:
    sample = run.sample
    if not isinstance(sample, dict) or not sample.get("text"):
        return None
    quoted = "\n".join(f"    {line}" for line in str(sample["text"]).strip("\n").splitlines())
    return {"prompt": one_line(str(sample.get("prompt", ""))), "text": quoted}


def one_line(text: str) -> str:
    return " ".join(str(text).split())


def table_cell(text: str) -> str:
    """`text` where a bar would end a cell of a table."""
    return text.replace("|", "\\|")
