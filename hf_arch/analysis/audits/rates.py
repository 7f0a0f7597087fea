"""How the learning rates of runs were chosen: by the same budget, on other rows than the claim's, inside the grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hf_arch.analysis.audits.keys import differing, settings_of
from hf_arch.analysis.finding import Finding, Severity, not_recorded
from hf_arch.analysis.question import is_across_architectures, is_asked
from hf_arch.analysis.run_names import by_name, by_value, listed, rates_text, run_labels, run_names
from hf_arch.runs.record import RunRecord

FOLLOWED = 0.02
"""Of the highest rate: so far apart may two logged courses of one schedule be."""
FEWEST_LOGGED = 3


def check_learning_rates(runs: Sequence[RunRecord]) -> Finding:
    """The same learning-rate budget, chosen on other rows than the claim's, and not at the end of the grid."""
    if unknown := [run for run in runs if run.learning_rate is None]:
        return not_recorded("learning rate", "learning_rate", unknown)
    sweeps = {name: [run.experiment.get("learning_rates") for run in group] for name, group in by_name(runs).items()}
    if uneven := [name for name, found in sweeps.items() if any(sweep != found[0] for sweep in found)]:
        sentence = f"Seeds of {listed(uneven)} took their learning rate from different sweeps, or some from none."
        return Finding("learning rate", "violation", sentence, run_labels(runs), sweeps)
    if any(found[0] for found in sweeps.values()):
        return _chosen_rates(runs, {name: found[0] for name, found in sweeps.items()})
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


def check_followed(runs: Sequence[RunRecord]) -> Finding | None:
    """The same course of the learning rate in what was logged, where recipes give the same schedule: code may change it
    on the way."""
    shapes = {run: shape for run in runs if run.completed and len(shape := _shape(run)) >= FEWEST_LOGGED}
    if differing(settings_of("schedule", runs)) or len({run.steps for run in shapes}) > 1:
        return None
    first = next(iter(shapes), None)
    apart = [run for run in shapes if first is not None and _farthest(shapes[first], shapes[run]) > FOLLOWED]
    if first is None or not apart:
        return None
    values = {run.label: _farthest(shapes[first], shapes[run]) for run in apart}
    sentence = (
        f"The logged learning rate of {run_names(apart)} takes another course than that of {first.label}, by up to "
        f"{max(values.values()):.0%} of the highest, though the schedules agree."
    )
    severity: Severity = "note" if is_asked("schedule", runs) else "violation"
    return Finding("schedule", severity, sentence, run_labels([first, *apart]), values)


def _shape(run: RunRecord) -> dict[int, float]:
    """{step: logged rate}."""
    return {
        int(row["step"]): float(row["learning_rate"])
        for row in run.metrics
        if isinstance(row.get("learning_rate"), (int, float)) and isinstance(row.get("step"), (int, float))
    }


def _farthest(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """The largest difference at common steps of two courses, each as a share of its highest there."""
    steps = sorted(one.keys() & other.keys())
    tops = [max((rates[step] for step in steps), default=0.0) for rates in (one, other)]
    if len(steps) < FEWEST_LOGGED or min(tops) <= 0:
        return 0.0
    return max(abs(one[step] / tops[0] - other[step] / tops[1]) for step in steps)


def _one_budget(runs: Sequence[RunRecord], rates: Sequence[float], values: dict[str, Any]) -> Finding:
    """Every run tried the same rates: one for all, or a grid."""
    if len(rates) == 1:
        sentence = f"One learning rate, {rates_text(rates)}, for every run: none of them was tuned"
        optimisers = len({run.config.get("training", {}).get("optim") for run in runs if run.config}) > 1
        across = is_across_architectures(runs) or optimisers
        what = "optimisers" if optimisers else "architectures"
        sentence += f", and the best rate differs between {what}." if across else "."
        return Finding("learning rate", "violation" if across else "note", sentence, run_labels(runs), values)
    best = {name: rate for name, group in by_name(runs).items() if (rate := _best_rate(group)) is not None}
    at_edge = [name for name, rate in best.items() if rate in (min(rates), max(rates))]
    values = {**values, "best": best}
    if at_edge:
        text = _by_rate({name: best[name] for name in at_edge})
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
    budgets = by_value(values, lambda name: _budget_text(values[name]))
    budget = next(iter(budgets))
    if len(budgets) > 1:
        text = "; ".join(f"{listed(names)}: {tried}" for tried, names in budgets.items())
        return Finding("learning rate", "violation", f"Learning-rate budget differs: {text}.", run_labels(runs), values)
    if at_edge := [name for name, sweep in values.items() if _at_edge(sweep)]:
        text = _by_rate({name: values[name]["chosen"] for name in at_edge})
        sentence = f"The chosen learning rate lies at the end of those that were tried ({budget}): {text}."
        edge_runs = [run for run in runs if run.name in at_edge]
        return Finding("learning rate", "violation", sentence, run_labels(edge_runs), values)
    if elsewhere := [run for run in runs if not _is_chosen(run.learning_rate, values[run.name])]:
        sentence = f"Trained at another learning rate than the sweep chose: {_at_rates(elsewhere, values)}."
        return Finding("learning rate", "violation", sentence, run_labels(elsewhere), values)
    if same_rows := [name for name, sweep in values.items() if not _on_other_rows(sweep)]:
        sentence = (
            f"The learning rate of {listed(same_rows)} was chosen on rows that are compared, or it is not recorded."
        )
        return Finding("learning rate", "violation", sentence, run_labels(runs), values)
    text = _by_rate({name: sweep.get("chosen") for name, sweep in values.items()})
    sentence = f"Same learning-rate budget: each chose among {budget} on other rows ({text})."
    return Finding("learning rate", "ok", sentence, run_labels(runs), values)


def _budget_text(sweep: Mapping[str, Any]) -> str:
    """The rates that were tried, a grid or how many were sampled from where, and with how many seeds where that was
    more than one."""
    sampled, seeds = sweep.get("sampled"), sweep.get("seeds") or ()
    text = rates_text(tuple(sweep.get("grid") or ()))
    if isinstance(sampled, Mapping):
        text = f"{sampled['trials']} rates sampled from {sampled['low']:g} to {sampled['high']:g}"
    return text if len(seeds) < 2 else f"{text} with {len(seeds)} seeds each"


def _by_rate(rates: Mapping[str, Any]) -> str:
    """`a, b: 0.001; c: 0.003`."""
    return "; ".join(f"{listed(names)}: {rate:.3g}" for rate, names in by_value(rates, rates.__getitem__).items())


def _is_chosen(rate: float | None, sweep: Mapping[str, Any]) -> bool:
    return rate is not None and math.isclose(rate, float(sweep.get("chosen") or 0.0), rel_tol=1e-6)


def _at_rates(runs: Sequence[RunRecord], sweeps: Mapping[str, Any]) -> str:
    found = {
        run.name: f"{run.name} at {run.learning_rate:.3g} (chosen: {sweeps[run.name].get('chosen')})" for run in runs
    }
    return "; ".join(found.values())


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
