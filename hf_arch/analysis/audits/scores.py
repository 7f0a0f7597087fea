"""Scores of `hf-arch eval` stand next to each other in a table: they are of the same rows, weights and precision, or
that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_arch.analysis.finding import Finding
from hf_arch.analysis.run_names import by_value, run_labels, run_names
from hf_arch.runs.record import RunRecord

_SPLIT = "batch_size"
"""A setting that moves no score but by rounding."""


def check_scores(runs: Sequence[RunRecord]) -> Finding | None:
    """Each task scored in the same way: limit, type, how many checkpoints the score is the mean of, rows."""
    tasks = dict.fromkeys(task for run in runs if run.completed for task in run.benchmarks)
    differing = {}
    for task in tasks:
        scored = [run for run in runs if run.completed and task in run.benchmarks]
        kinds = by_value(scored, lambda run: repr(sorted(_made(run.benchmarks[task]).items())))  # noqa: B023
        if len(kinds) > 1:
            differing[task] = list(kinds.values())
    if not differing:
        scored = [run for run in runs if run.benchmarks]
        return Finding("scores", "ok", "Tasks are scored in the same way.", run_labels(scored)) if tasks else None
    task, groups = next(iter(differing.items()))
    made = [_made(group[0].benchmarks[task]) for group in groups]
    keys = [
        key for key in dict.fromkeys(key for one in made for key in one) if len({repr(m.get(key)) for m in made}) > 1
    ]
    text = "; ".join(
        f"{', '.join(f'{key} {facts.get(key)}' for key in keys)}: {run_names(group)}"
        for facts, group in zip(made, groups, strict=True)
    )
    others = f" (and {len(differing) - 1} other tasks)" if len(differing) > 1 else ""
    sentence = f"Scores of {task}{others} were made otherwise and do not compare: {text}."
    values = {run.label: facts for facts, group in zip(made, groups, strict=True) for run in group}
    return Finding("scores", "violation", sentence, run_labels(run for group in groups for run in group), values)


def _made(scores: Mapping[str, Any]) -> dict[str, Any]:
    """How a task was scored: the settings, and the rows by number and name."""
    settings = scores.get("settings")
    found = {key: value for key, value in (settings or {}).items() if key != _SPLIT}
    if isinstance(averaged := found.pop("average_of_checkpoints", None), list):
        found["mean of checkpoints"] = len(averaged)
    return {**found, **{key: scores[key] for key in ("rows", "samples", "tokens") if key in scores}}
