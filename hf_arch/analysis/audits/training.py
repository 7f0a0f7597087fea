"""How runs were trained: rates, schedule, optimiser, precision; whether they still learned; what else differs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from hf_arch.analysis.finding import Finding, Severity, not_recorded
from hf_arch.analysis.question import (
    ABOUT,
    changed_keys,
    covers,
    declared,
    is_across_architectures,
    is_asked,
    varied,
)
from hf_arch.analysis.run_names import by_name, by_value, listed, rates_text, run_labels, run_names
from hf_arch.runs.record import RunRecord
from hf_arch.runs.run_settings import shared_settings

OWN_CHECKS = ("schedule", "optimiser", "rows")
"""Checks that look at their settings themselves."""
LAST = 0.25
"""The part of training that is fitted to see how fast the loss still falls."""
TENTH = 0.1
DECAYED = 0.5
"""Of the highest rate: a schedule that ends above it has not decayed."""
GROUPS_APART = 0.1
"""How much more of all parameters may decay on one side than on the other."""


def check_learning_rates(runs: Sequence[RunRecord]) -> Finding:
    """The same learning-rate budget, chosen on other rows than the claim's, and not at the end of the grid."""
    if unknown := [run for run in runs if run.learning_rate is None]:
        return not_recorded("learning rate", "learning_rate", unknown)
    swept = {name: group[0].experiment.get("learning_rates") for name, group in by_name(runs).items()}
    if any(swept.values()):
        return _chosen_rates(runs, swept)
    tried = {
        name: tuple(sorted({run.learning_rate for run in group if run.learning_rate is not None}))
        for name, group in by_name(runs).items()
    }
    budgets, values = by_value(tried, tried.get), {name: list(rates) for name, rates in tried.items()}
    if len(budgets) == 1:
        rates = next(iter(budgets))
        return _one_budget(runs, rates, values)
    sampled = by_value(list(runs), lambda run: str(run.experiment.get("tune")))
    if len(sampled) == 1 and "None" not in sampled and len({len(rates) for rates in budgets}) == 1:
        tune = runs[0].experiment["tune"]
        text = f"{len(next(iter(budgets)))} rates each, sampled from {tune['low']:g} to {tune['high']:g}"
        return _same_rows(runs, f"Same learning-rate budget: {text}", values)
    text = "; ".join(f"{listed(names)}: {rates_text(rates)}" for rates, names in budgets.items())
    severity: Severity = "note" if is_asked("learning rate", runs) else "violation"
    return Finding("learning rate", severity, f"Learning-rate budget differs: {text}.", run_labels(runs), values)


def _one_budget(runs: Sequence[RunRecord], rates: Sequence[float], values: dict[str, Any]) -> Finding:
    """Every run tried the same rates: one for all, or a grid."""
    if len(rates) == 1:
        sentence = f"One learning rate, {rates_text(rates)}, for every run: none of them was tuned"
        across = is_across_architectures(runs)
        sentence += ", and the best rate differs between architectures." if across else "."
        return Finding("learning rate", "violation" if across else "note", sentence, run_labels(runs), values)
    best = {name: rate for name, group in by_name(runs).items() if (rate := _best_rate(group)) is not None}
    at_edge = [name for name, rate in best.items() if rate in (min(rates), max(rates))]
    values = {**values, "best": best}
    if at_edge:
        text = "; ".join(f"{name}: {best[name]:.3g}" for name in at_edge)
        sentence = f"The best learning rate lies at the end of the grid ({rates_text(rates)}): {text}."
        edge_runs = [run for run in runs if run.name in at_edge]
        return Finding("learning rate", "violation", sentence, run_labels(edge_runs), values)
    return _same_rows(runs, f"Same learning-rate budget: every run tried {rates_text(rates)}", values)


def _same_rows(runs: Sequence[RunRecord], sentence: str, values: dict[str, Any]) -> Finding:
    """Rates that were chosen by the numbers which are then compared: who tried more rates looks better for it."""
    if len({run.name for run in runs}) < 2:
        return Finding("learning rate", "ok", f"{sentence}.", run_labels(runs), values)
    sentence += ", and the best was chosen on the rows and seeds compared (`experiment.learning_rates` uses others)."
    return Finding("learning rate", "violation", sentence, run_labels(runs), values)


def _chosen_rates(runs: Sequence[RunRecord], swept: dict[str, Any]) -> Finding:
    """Rates that a sweep before the comparison chose."""
    values = {name: sweep for name, sweep in swept.items() if sweep}
    if without := [name for name, sweep in swept.items() if not sweep]:
        sentence = f"Learning rates were chosen by a sweep for {listed(list(values))}, and not for {listed(without)}."
        return Finding("learning rate", "violation", sentence, run_labels(runs), values)
    grids = by_value(values, lambda name: tuple(values[name].get("grid") or ()))
    if len(grids) > 1:
        text = "; ".join(f"{listed(names)}: {rates_text(grid)}" for grid, names in grids.items())
        return Finding("learning rate", "violation", f"Learning-rate budget differs: {text}.", run_labels(runs), values)
    if at_edge := [name for name, sweep in values.items() if _at_edge(sweep)]:
        text = "; ".join(f"{name}: {values[name].get('chosen'):.3g}" for name in at_edge)
        sentence = f"The chosen learning rate lies at the end of the grid ({rates_text(next(iter(grids)))}): {text}."
        edge_runs = [run for run in runs if run.name in at_edge]
        return Finding("learning rate", "violation", sentence, run_labels(edge_runs), values)
    if same_rows := [name for name, sweep in values.items() if not _on_other_rows(sweep)]:
        sentence = (
            f"The learning rate of {listed(same_rows)} was chosen on rows that are compared, or it is not recorded."
        )
        return Finding("learning rate", "violation", sentence, run_labels(runs), values)
    text = "; ".join(f"{name} {sweep.get('chosen'):.3g}" for name, sweep in values.items())
    sentence = f"Same learning-rate budget: each chose among {rates_text(next(iter(grids)))} on other rows ({text})."
    return Finding("learning rate", "ok", sentence, run_labels(runs), values)


def _at_edge(sweep: Mapping[str, Any]) -> bool:
    grid = sweep.get("grid") or ()
    return bool(sweep.get("at_edge")) or (len(grid) > 0 and sweep.get("chosen") in (min(grid), max(grid)))


def _on_other_rows(sweep: Mapping[str, Any]) -> bool:
    """Whether the rows of the choice and those of the claim are known to have nothing in common."""
    chosen, claimed = sweep.get("selection_rows"), sweep.get("claim_rows")
    return bool(chosen and claimed) and chosen != claimed and "all" not in (chosen, claimed)


def _best_rate(group: Sequence[RunRecord]) -> float | None:
    """The rate with the best mean loss (accuracy, of a probe)."""
    key = "accuracy" if all("accuracy" in run.numbers for run in group if run.completed) else "final_val_loss"
    sign = -1 if key == "accuracy" else 1
    scores: dict[float, list[float]] = {}
    for run in group:
        if run.completed and run.learning_rate is not None and key in run.numbers:
            scores.setdefault(run.learning_rate, []).append(sign * run.numbers[key])
    return min(scores, key=lambda rate: fmean(scores[rate])) if scores else None


def check_schedule(runs: Sequence[RunRecord]) -> Finding | None:
    """The same schedule, and one that ended: a loss before the rate has decayed ranks otherwise than one after."""
    settings = {run: _about("schedule", run) for run in runs if run.config}
    if differing := _differing(settings):
        severity: Severity = "note" if is_asked("schedule", runs) else "violation"
        return Finding("schedule", severity, f"Schedules differ: {differing}.", run_labels(settings))
    high = {
        run: ratio for run in runs if run.completed and (ratio := _end_of_rate(run)) is not None and ratio > DECAYED
    }
    if high:
        sentence = (
            f"The learning rate had not decayed at the end of {run_names(high)} (it stood at "
            f"{max(high.values()):.0%} of its highest): losses before and after a decay rank otherwise."
        )
        return Finding("schedule", "violation", sentence, run_labels(high), {run.label: r for run, r in high.items()})
    return Finding("schedule", "ok", "Same schedule, decayed at the end.", run_labels(runs)) if settings else None


def check_still_learning(runs: Sequence[RunRecord]) -> Finding | None:
    """Whether the loss at the end still falls by more, in a tenth of the budget, than what separates two runs."""
    key = "final_val_loss"
    falls = {
        name: fmean(found)
        for name, group in by_name(runs).items()
        if (found := [fall for run in group if run.completed and (fall := fall_per_tenth(run)) is not None])
    }
    means = {
        name: fmean(run.numbers[key] for run in group if run.completed)
        for name, group in by_name(runs).items()
        if any(run.completed for run in group)
    }
    close = [
        (max(falls[a], falls[b]), abs(means[a] - means[b]), a, b)
        for a, b in combinations(falls, 2)
        if max(falls[a], falls[b]) > abs(means[a] - means[b])
    ]
    values = {name: {"fall": fall, "loss": means[name]} for name, fall in falls.items()}
    if not close:
        if not falls:
            return None
        sentence = (
            "Learning has slowed: the losses still fall by less in a tenth of the budget than what separates any two."
        )
        return Finding("still learning", "ok", sentence, run_labels(runs), values)
    fall, difference, a, b = max(close, key=lambda entry: entry[0] - entry[1])
    sentence = (
        f"Still learning: {a} and {b} are {difference:.3g} apart, and a loss still falls by {fall:.3g} in a tenth of "
        "the budget; a longer run may rank them otherwise."
    )
    names = {name for _, _, *pair in close for name in pair}
    return Finding(
        "still learning", "violation", sentence, run_labels(run for run in runs if run.name in names), values
    )


def fall_per_tenth(run: RunRecord) -> float | None:
    """By how much the loss falls in a tenth of the budget at the end: a straight line through its last quarter (the
    validation loss where it was taken often enough, else the training loss). None where there are too few points."""
    if run.stopped_early:
        return None
    rows = [row for row in run.metrics if isinstance(row.get("step"), (int, float))]
    last = max((row["step"] for row in rows), default=0)
    for key in ("val_loss", "loss"):
        points = [
            (row["step"] / last, row[key])
            for row in rows
            if isinstance(row.get(key), (int, float)) and np.isfinite(row[key]) and row["step"] >= (1 - LAST) * last > 0
        ]
        if len(points) >= 3:
            x, y = np.array(points, dtype=np.float64).T
            slope = float(np.polyfit(x, y, 1)[0])
            return max(0.0, -slope * TENTH)
    return None


def check_optimiser(runs: Sequence[RunRecord]) -> Finding | None:
    """The same optimiser, with the same groups of parameters."""
    settings = {run: _about("optimiser", run) for run in runs if run.config}
    severity: Severity = "note" if is_asked("optimiser", runs) else "violation"
    if differing := _differing(settings):
        return Finding("optimiser", severity, f"Optimisers differ: {differing}.", run_labels(settings))
    recorded = [run for run in runs if run.optimizer]
    kinds = by_value(recorded, lambda run: repr(_groups(run)))
    if len(kinds) > 1:
        text = "; ".join(f"{_groups_text(group[0])}: {run_names(group)}" for group in kinds.values())
        return Finding("optimiser", severity, f"Groups of the optimiser differ: {text}.", run_labels(recorded))
    shares = {run.name: share for run in recorded if (share := _decaying(run)) is not None}
    if shares and max(shares.values()) - min(shares.values()) > GROUPS_APART:
        text = "; ".join(f"{name} {share:.0%}" for name, share in shares.items())
        sentence = f"Weight decay reaches other shares of the parameters: {text}."
        return Finding("optimiser", severity, sentence, run_labels(recorded), shares)
    return Finding("optimiser", "ok", "Same optimiser and groups.", run_labels(runs), shares) if settings else None


def check_precision(runs: Sequence[RunRecord]) -> Finding | None:
    """The same precision."""
    kinds = by_value([run for run in runs if run.completed], lambda run: run.precision)
    if len(kinds) < 2:
        return None
    text = "; ".join(f"{precision}: {run_names(group)}" for precision, group in kinds.items())
    severity: Severity = "note" if is_asked("precision", runs) else "violation"
    return Finding("precision", severity, f"Precision differs: {text}.", run_labels(runs))


def check_settings(runs: Sequence[RunRecord]) -> Finding:
    """Any other recipe setting in which the architectures differ: schedule, batch, weight decay, evaluation."""
    configured = [run for run in runs if run.config]
    settings = {run: shared_settings(run) for run in configured}
    own = [pattern for check, pattern in ABOUT.items() if check in OWN_CHECKS]
    keys = sorted(
        {key for flat in settings.values() for key in flat if not any(re.fullmatch(one, key) for one in own)}
        - {"precision"}
    )
    differing = []
    for key in keys:
        values = by_value(configured, lambda run, key=key: repr(settings[run].get(key)))  # type: ignore[misc]
        if len(values) > 1:
            differing.append(f"{key} ({'; '.join(f'{value}: {run_names(group)}' for value, group in values.items())})")
    if differing:
        sentence = f"Settings differ beside the model: {', '.join(differing)}."
        severity: Severity = "note" if is_asked("settings", runs) else "violation"
        return Finding("settings", severity, sentence, run_labels(runs))
    if len(configured) < len(runs):
        return Finding("settings", "note", "Settings beside the model: not recorded for every run.", run_labels(runs))
    return Finding("settings", "ok", "Same settings: data, training and evaluation sections agree.", run_labels(runs))


def check_one_change(runs: Sequence[RunRecord]) -> Finding | None:
    """Runs of two names differ in what is asked about and in nothing else, and they do differ."""
    configured = [run for run in runs if run.config]
    names = list(dict.fromkeys(run.name for run in configured))
    if len(names) < 2 or len(configured) < len(runs):
        return None
    for first, second in combinations(names, 2):
        pair = [run for run in configured if run.name in (first, second)]
        if not changed_keys(pair) and not _tuned(pair) and len({run.architecture for run in pair}) == 1:
            sentence = f"{first} and {second} are one recipe: whatever separates them is chance."
            return Finding("one change", "violation", sentence, run_labels(pair), {"changed": []})
    asked, changed = declared(configured), sorted(changed_keys(configured))
    values = {"changed": changed, "asked": list(asked or ())}
    if asked is None:
        return None
    beside = [key for key in changed if not covers(key, asked)]
    if beside:
        what = "what `experiment.vary` names" if varied(configured) else "what the runs of the recipe change"
        sentence = f"Beside {what} ({listed(list(asked)) or 'nothing'}), these differ: {listed(beside)}."
        return Finding("one change", "violation", sentence, run_labels(configured), values)
    return Finding(
        "one change", "ok", f"The question is {listed(changed) or 'the runs'}.", run_labels(configured), values
    )


def _tuned(runs: Sequence[RunRecord]) -> bool:
    return len({run.learning_rate for run in runs}) > 1


def _about(check: str, run: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in shared_settings(run).items() if re.fullmatch(ABOUT[check], key)}


def _differing(settings: dict[RunRecord, dict[str, Any]]) -> str:
    """The keys in which runs differ with their values, in words; empty where there are none."""
    found = []
    for key in sorted({key for flat in settings.values() for key in flat}):
        values = by_value(settings, lambda run, key=key: repr(settings[run].get(key)))  # type: ignore[misc]
        if len(values) > 1:
            found.append(f"{key} ({'; '.join(f'{value}: {run_names(group)}' for value, group in values.items())})")
    return ", ".join(found)


def _end_of_rate(run: RunRecord) -> float | None:
    """The last learning rate over the highest, by the metrics; None where these do not say, or a probe ended early."""
    rates = [row["learning_rate"] for row in run.metrics if isinstance(row.get("learning_rate"), (int, float))]
    return rates[-1] / max(rates) if len(rates) > 2 and max(rates) > 0 and not run.stopped_early else None


def _groups(run: RunRecord) -> list[Any]:
    """Class with the hash of its plugin, and every group's settings, the rate as a share of the highest."""
    optimizer = run.optimizer or {}
    groups = [group for group in optimizer.get("groups") or [] if group.get("parameters")]
    highest = max((group.get("lr") or 0.0 for group in groups), default=0.0) or 1.0
    settings = {
        (
            round((group.get("lr") or 0.0) / highest, 6),
            group.get("weight_decay"),
            repr(group.get("betas")),
            group.get("eps"),
        )
        for group in groups
    }
    code = f" of {optimizer['code'][:8]}" if optimizer.get("code") else ""
    return [f"{optimizer.get('class')}{code}", sorted(settings, key=repr)]


def _groups_text(run: RunRecord) -> str:
    name, groups = _groups(run)
    return f"{name} " + ", ".join(f"({rate:g} of the rate, decay {decay})" for rate, decay, *_ in groups)


def _decaying(run: RunRecord) -> float | None:
    groups = (run.optimizer or {}).get("groups") or []
    total = sum(group.get("parameters") or 0 for group in groups)
    return sum(group.get("parameters") or 0 for group in groups if group.get("weight_decay")) / total if total else None
