"""What runs are large in: parameters, FLOPs, state; and which of these the recipe made equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hf_arch.analysis.finding import Finding, Severity, not_recorded
from hf_arch.analysis.question import is_asked
from hf_arch.analysis.resolved import setting
from hf_arch.analysis.run_names import run_labels
from hf_arch.core.files import finite
from hf_arch.core.formats import factor
from hf_arch.runs.limits import FLOPS_RATIO, WIDTH_RATIO
from hf_arch.runs.record import NUMBERS, RunRecord

PARAMETER_TOLERANCE = 0.01
MOST_TOLERATED = 0.05
"""Of the parameters: a recipe may allow more, and a claim is confounded all the same."""
# number: (check, what it is in words, ratio that is worth a note, ratio that is another reason for a difference)
RATIOS = {
    "flops_per_token": ("flops", "Training FLOPs per token", 1.1, FLOPS_RATIO),
    "state_bytes": ("state", "Bytes of state", 2.0, 10.0),
    "params_body": ("non-embedding parameters", "Parameters outside the embeddings", 1.1, 2.0),
    "train_tokens_per_second": ("speed", "Tokens a second in training", 2.0, math.inf),
    "params_active": ("active parameters", "Parameters that a token passes through", 1.1, 2.0),
    "width": ("width", "Widths of the stream", 1.5, WIDTH_RATIO),
    "layers": ("depth", "Numbers of layers", 1.5, WIDTH_RATIO),
    "branches": ("depth", "Numbers of branches, of mixers and of feed-forwards,", 1.5, WIDTH_RATIO),
}


def check_parameters(runs: Sequence[RunRecord]) -> Finding:
    """Parameters within 1 %, or the reason why they should differ."""
    if missing := [run for run in runs if "params_total" not in run.numbers and run.completed]:
        return not_recorded("parameters", "params_total", missing)
    ends = _ends(runs, "params_total")
    if ends is None:
        return Finding("parameters", "ok", "Parameters: one architecture, nothing to match.", run_labels(runs))
    (least, small), (most, large) = ends
    known = {run.label: run.numbers.get("params_total") for run in runs}
    mismatch = most / least - 1
    if mismatch <= PARAMETER_TOLERANCE:
        return Finding("parameters", "ok", f"Parameters match within {mismatch:.2%} (limit 1 %).", run_labels(runs))
    sentence = (
        f"Parameters differ by {_excess(mismatch)} (limit 1 %): {small} has {int(least):,}, {large} has {int(most):,}"
    )
    declared = max((finite(_match(run).get("tolerance")) or 0.0 for run in runs), default=0.0)
    if mismatch <= min(declared, MOST_TOLERATED) and all(_match(run).get("by") == "parameters" for run in runs):
        return Finding("parameters", "note", f"{sentence}; the recipe allows {declared:.0%}.", run_labels(runs))
    for by, what in (("flops", "FLOPs per token"), ("state", "bytes of state")):
        if all(_match(run).get("by") == by for run in runs):
            return Finding("parameters", "note", f"{sentence}; the recipe matches {what} instead.", run_labels(runs))
    if is_asked("parameters", runs):
        return Finding("parameters", "note", f"{sentence}; the size is the question.", run_labels(runs), known)
    return Finding("parameters", "violation", f"{sentence}.", run_labels(runs), known)


def check_matched_size(runs: Sequence[RunRecord]) -> Finding | None:
    """FLOPs per token or bytes of state within the declared tolerance, where the recipe matches by them."""
    match = next((match for run in runs if (match := _match(run))), {})
    matched = {"flops": ("flops_per_token", "Training FLOPs per token"), "state": ("state_bytes", "Bytes of state")}
    if match.get("by") not in matched:
        return None
    key, what = matched[match["by"]]
    sizes = {run.name: run.numbers[key] for run in runs if run.numbers.get(key)}
    if len(sizes) < 2:
        return None
    tolerance = finite(match.get("tolerance")) or PARAMETER_TOLERANCE
    mismatch = max(sizes.values()) / min(sizes.values()) - 1
    severity: Severity = "ok" if mismatch <= tolerance else "violation"
    _, _, worth_a_note, another_reason = RATIOS[key]
    if severity == "ok" and mismatch + 1 > worth_a_note:
        severity = "note" if mismatch + 1 < another_reason else "violation"
    sentence = f"{what} differ by {mismatch:.2%} (declared limit {tolerance:.0%})."
    return Finding(match["by"], severity, sentence, run_labels(runs), {"ratio": mismatch + 1, **sizes})


def check_flops(runs: Sequence[RunRecord]) -> Finding | None:
    """Training FLOPs for a token, where the recipe matches by something else."""
    return _ratio(runs, "flops_per_token")


def check_state(runs: Sequence[RunRecord]) -> Finding | None:
    """Bytes of cache or state, where the recipe matches by something else."""
    return _ratio(runs, "state_bytes")


def check_speed(runs: Sequence[RunRecord]) -> Finding | None:
    """Seconds are an axis of their own: at equal tokens one side may have had many times as many."""
    return _ratio(runs, "train_tokens_per_second")


def check_body(runs: Sequence[RunRecord]) -> Finding | None:
    """Parameters outside the embeddings: equal totals may hide a larger vocabulary or an untied head."""
    return _ratio(runs, "params_body")


def check_active(runs: Sequence[RunRecord]) -> Finding | None:
    """Parameters that a token passes through, fewer than all with experts."""
    return _ratio(runs, "params_active")


def check_width(runs: Sequence[RunRecord]) -> Finding | None:
    """Equal totals may hide a narrow stream with large parts beside it."""
    return _ratio(runs, "width")


def check_depth(runs: Sequence[RunRecord]) -> Finding | None:
    """Equal totals may hide few layers. A layer without a feed-forward is half of one with it: models of as many layers
    are as deep, and so are those of as many branches."""
    keys = ["layers", *(["branches"] if all(_size(run, "branches") for run in runs) else [])]
    found = [_ratio(runs, key) for key in keys]
    return min((finding for finding in found if finding), key=lambda finding: finding.values["ratio"], default=None)


def _ratio(runs: Sequence[RunRecord], key: str) -> Finding | None:
    """A finding on one number by the ratio of its largest to its smallest value."""
    check, what, worth_a_note, another_reason = RATIOS[key]
    if any(_match(run).get("by") == check for run in runs):
        return None  # matched by it, which has a check of its own
    ends = _ends(runs, key)
    if ends is None:
        return None
    (least, small), (most, large) = ends
    ratio = most / max(least, 1.0)
    values = {"ratio": ratio, **{run.label: _size(run, key) for run in runs}}
    show = NUMBERS[key].show if key in NUMBERS else "{:,.0f}".format
    if ratio <= worth_a_note:
        return Finding(check, "ok", f"{what} within a factor of {ratio:.3g}.", run_labels(runs), values)
    sentence = f"{what} differ by a factor of {factor(ratio)}: {small} has {show(least)}, {large} {show(most)}"
    if ratio >= another_reason and not is_asked(check, runs):
        return Finding(check, "violation", f"{sentence}.", run_labels(runs), values)
    why = f"; the recipe matches {by}" if (by := _match(runs[0]).get("by")) else ""
    return Finding(check, "note", f"{sentence}{why}.", run_labels(runs), values)


def _ends(runs: Sequence[RunRecord], key: str) -> tuple[tuple[float, str], tuple[float, str]] | None:
    """((smallest, name of its run), (largest, name of its run)); None where fewer than two names have one."""
    sizes = [(size, run.name) for run in runs if (size := _size(run, key)) is not None]
    return (min(sizes), max(sizes)) if len({name for _, name in sizes}) > 1 else None


def _size(run: RunRecord, key: str) -> float | None:
    numbers = run.numbers
    if key in ("width", "layers"):
        return finite(setting(run, "model.hidden_size" if key == "width" else "model.num_hidden_layers"))
    if key == "branches":
        return float(sum(ratio is not None for one in (run.branch_scale or {}).values() for ratio in one)) or None
    if key != "params_body":
        return numbers.get(key)
    if "params_total" not in numbers or "params_embedding" not in numbers:
        return None
    return numbers["params_total"] - numbers["params_embedding"]


def _excess(mismatch: float) -> str:
    """By how much the larger exceeds the smaller: in per cent, or as a factor where it is more than double."""
    return f"{mismatch:.1%}" if mismatch < 1 else f"a factor of {mismatch + 1:.3g}"


def _match(run: RunRecord) -> dict[str, Any]:
    match = run.experiment.get("match")
    return match if isinstance(match, dict) else {}
