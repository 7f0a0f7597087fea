"""How runs were trained: schedule, optimiser, precision; whether they still learned; what else differs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from hf_arch.analysis.audits.keys import differing, settings_of, values_apart, with_values
from hf_arch.analysis.curves import recorded_schedule
from hf_arch.analysis.finding import Finding, Severity
from hf_arch.analysis.question import (
    ABOUT,
    asks_tokenizer,
    beside_the_architecture,
    brought_along,
    changed_keys,
    computed_otherwise,
    covers,
    declared,
    is_across_architectures,
    is_asked,
    varied,
)
from hf_arch.analysis.run_names import by_name, by_value, listed, run_labels, run_names, shares_of, values_by_run
from hf_arch.runs.record import RunRecord
from hf_arch.runs.run_settings import shared_settings

OWN_CHECKS = ("schedule", "optimiser", "rows")
"""Checks that look at their settings themselves."""
LAST = 0.25
"""The part of training that is fitted to see how fast the loss still falls."""
TENTH = 0.1
DECAYED = 0.5
"""Of the highest rate: a schedule that ends above it has not decayed."""
CLIPPED, UNCLIPPED = 0.5, 0.05
"""Shares of the logged steps: clipping that acts on one side and not on the other."""
ENOUGH_LOGGED = 3
"""Steps with a logged gradient before the end of a run that ended early."""
FROZEN_APART = 0.01
"""How much more of all parameters may be stepped on one side than on the other."""
READABLE = 700
"""Characters that values of what architectures bring along may fill; where they would fill more, keys stand alone."""
GROUPS_APART = 0.1
"""How much more of all parameters may decay on one side than on the other."""


def check_schedule(runs: Sequence[RunRecord]) -> Finding | None:
    """The same schedule, and one that ended: a loss before the rate has decayed ranks otherwise than one after."""
    settings = settings_of("schedule", runs)
    if found := differing(settings):
        severity: Severity = "note" if is_asked("schedule", runs) else "violation"
        return Finding(
            "schedule", severity, f"Schedules differ: {found}.", run_labels(settings), values_apart(settings)
        )
    high = {
        run: ratio for run in runs if run.completed and (ratio := _end_of_rate(run)) is not None and ratio > DECAYED
    }
    if high:
        sentence = (
            f"The learning rate had not decayed at the end of {run_names(high)} (it stood at "
            f"{max(high.values()):.0%} of its highest): losses before and after a decay can rank runs differently."
        )
        return Finding("schedule", "violation", sentence, run_labels(high), {run.label: r for run, r in high.items()})
    return Finding("schedule", "ok", "Same schedule, decayed at the end.", run_labels(runs)) if settings else None


def check_still_learning(runs: Sequence[RunRecord]) -> Finding | None:
    """Whether the loss at the end still falls by more, in a tenth of the budget, than what separates two runs."""
    key = "bits_per_byte" if asks_tokenizer(runs) else "final_val_loss"
    runs = [run for run in runs if not run.completed or key in run.numbers]
    falls = {
        name: fmean(found)
        for name, group in by_name(runs).items()
        if (
            found := [
                fall * _unit(run, key) for run in group if run.completed and (fall := fall_per_tenth(run)) is not None
            ]
        )
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
        "the budget; a longer run may rank them differently."
    )
    names = {name for _, _, *pair in close for name in pair}
    return Finding(
        "still learning", "violation", sentence, run_labels(run for run in runs if run.name in names), values
    )


def _unit(run: RunRecord, key: str) -> float:
    """What a nat per token is in the unit of a number that is proportional to the loss."""
    loss = run.numbers["final_val_loss"]
    return run.numbers[key] / loss if loss else 1.0


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
    settings = settings_of("optimiser", runs)
    severity: Severity = "note" if is_asked("optimiser", runs) else "violation"
    if found := differing(settings):
        return Finding(
            "optimiser", severity, f"Optimisers differ: {found}.", run_labels(settings), values_apart(settings)
        )
    recorded = [run for run in runs if run.optimizer]
    kinds = by_value(recorded, lambda run: repr(_groups(run)))
    if len(kinds) > 1:
        text = "; ".join(f"{_groups_text(group[0])}: {run_names(group)}" for group in kinds.values())
        sentence = f"Groups of the optimiser differ: {text}."
        values: dict[str, Any] = {run.label: _groups(run) for run in recorded}
        return Finding("optimiser", severity, sentence, run_labels(recorded), values)
    exempt = {run: _decays_exempt(run) for run in recorded}
    if len(kinds := by_value([run for run in recorded if exempt[run] is not None], lambda run: exempt[run])) > 1:
        sentence = f"Weight decay reaches norms, biases or decays of {run_names(kinds[True])}; not of "
        sentence += f"{run_names(kinds[False])}."
        return Finding("optimiser", severity, sentence, run_labels(recorded), values_by_run(kinds))
    shares = {run.name: share for run in recorded if (share := _decaying(run)) is not None}
    if shares and max(shares.values()) - min(shares.values()) > GROUPS_APART:
        text = "; ".join(f"{name} {share:.0%}" for name, share in shares.items())
        sentence = f"Weight decay reaches other shares of the parameters: {text}."
        return Finding("optimiser", severity, sentence, run_labels(recorded), shares)
    trained = {run.name: share for run in recorded if (share := _trained(run)) is not None}
    if trained and max(trained.values()) - min(trained.values()) > FROZEN_APART:
        text = "; ".join(f"{name} {share:.0%}" for name, share in trained.items())
        sentence = f"The optimiser steps other shares of the parameters (the rest is frozen): {text}."
        return Finding("optimiser", severity, sentence, run_labels(recorded), trained)
    return Finding("optimiser", "ok", "Same optimiser and groups.", run_labels(runs), shares) if settings else None


def check_clipping(runs: Sequence[RunRecord]) -> Finding | None:
    """One limit on the norm of gradients may hold one side back in most of its steps and the other in none."""
    shares = {
        name: fmean(found)
        for name, group in by_name(runs).items()
        if (found := [share for run in group if run.completed and (share := _clipped(run)) is not None])
    }
    if not shares or max(shares.values()) < CLIPPED:
        return None
    unknown = [run for run in runs if run.completed and run.stopped_early and _clipped(run) is None]
    if min(shares.values()) > UNCLIPPED:
        if not unknown or {run.name for run in unknown} <= set(shares):
            return None
        sentence = (
            f"Gradients are clipped in {_steps_of(shares)}. Too few were logged of {run_names(unknown)} "
            "before the probe was solved, where gradients vanish: log more often to know."
        )
        return Finding("clipping", "note", sentence, run_labels(runs), shares)
    severity: Severity = "note" if is_asked("optimiser", runs) else "violation"
    sentence = f"Gradients are clipped on one side: in {_steps_of(shares)}."
    return Finding("clipping", severity, sentence, run_labels(runs), shares)


def _steps_of(shares: Mapping[str, float]) -> str:
    return f"{shares_of(shares, lambda name, share: f'{share:.0%} ({name})')} of the logged steps"


def check_precision(runs: Sequence[RunRecord]) -> Finding | None:
    """The same precision."""
    kinds = by_value([run for run in runs if run.completed], lambda run: run.precision)
    text = "; ".join(f"{precision}: {run_names(group)}" for precision, group in kinds.items()) if len(kinds) > 1 else ""
    settings = settings_of("precision", runs)
    found = ", ".join(filter(None, [text, differing(settings)]))
    if not found:
        return None
    severity: Severity = "note" if is_asked("precision", runs) else "violation"
    values = values_by_run(kinds) | values_apart(settings)
    return Finding("precision", severity, f"Precision differs: {found}.", run_labels(runs), values)


def check_losses(runs: Sequence[RunRecord]) -> Finding | None:
    """The same losses besides the next token's: one on one side only is what is compared."""
    settings = settings_of("losses", runs)
    if found := differing(settings):
        severity: Severity = "note" if is_asked("losses", runs) else "violation"
        return Finding(
            "losses", severity, f"Auxiliary losses differ: {found}.", run_labels(runs), values_apart(settings)
        )
    return None


def check_embedding_scale(runs: Sequence[RunRecord]) -> Finding | None:
    """The same factor on embeddings and logits: it moves the share that every branch has of the stream, and the rate at
    which embeddings and head learn."""
    settings = settings_of("embedding scale", runs)
    if found := differing(settings):
        severity: Severity = "note" if is_asked("embedding scale", runs) else "violation"
        sentence = f"Scale of embeddings or logits differs: {found}."
        return Finding("embedding scale", severity, sentence, run_labels(runs), values_apart(settings))
    return None


def check_settings(runs: Sequence[RunRecord]) -> Finding:
    """Any other recipe setting in which the architectures differ: schedule, batch, weight decay, evaluation."""
    configured = [run for run in runs if run.config]
    same = computed_otherwise(configured)
    own = re.compile("|".join(["precision", *(ABOUT[check] for check in OWN_CHECKS)]))
    theirs = {
        run: {key: value for key, value in shared_settings(run).items() if key not in same and not own.fullmatch(key)}
        | _seen_in(run)
        for run in configured
    }
    if found := differing(theirs):
        sentence = f"Settings differ besides the model: {found}."
        severity: Severity = "note" if is_asked("settings", runs) and not _other_steps(configured) else "violation"
        return Finding("settings", severity, sentence, run_labels(runs), values_apart(theirs))
    if len(configured) < len(runs):
        return Finding("settings", "note", "Settings besides the model: not recorded for every run.", run_labels(runs))
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
        sentence = f"Besides {what} ({listed(list(asked)) or 'nothing'}), these differ: {listed(beside)}."
        return Finding("one change", "violation", sentence, run_labels(configured), values)
    if more := beside_the_architecture(configured):
        sentence = (
            f"The architecture is not all that changes: so do {listed(_came_to(configured, more))}. A claim about "
            "the architecture needs these equal, or `experiment.vary` to name them as part of the question."
        )
        return Finding("one change", "violation", sentence, run_labels(configured), {**values, "beside": more})
    parts = {key.removeprefix("model.").partition(".")[0] for key in changed}
    if len(parts) > 1 and not varied(configured) and not is_across_architectures(configured):
        sentence = f"Several things change at once ({listed(changed)}): a claim is about all of them together."
        return Finding("one change", "note", sentence, run_labels(configured), values)
    return Finding(
        "one change", "ok", f"The question is {listed(changed) or 'the runs'}.", run_labels(configured), values
    )


def check_brought_along(runs: Sequence[RunRecord]) -> Finding | None:
    """What no recipe sets and models differ in all the same. It comes with an architecture, and is named; models of one
    architecture by equal recipes have no reason to differ."""
    if not (keys := brought_along(runs)):
        return None
    text = listed(_came_to(runs, keys), limit=12)
    if len(text) > READABLE:
        text = listed(keys, limit=12)
    changed = {key for key in changed_keys(runs) if key.startswith("model.")}
    if changed or is_across_architectures(runs):
        sentence = f"With what the recipes change come other values of {text}."
        return Finding("brought along", "note", sentence, run_labels(runs), {"keys": keys})
    sentence = f"Models differ in what no recipe sets: {text}."
    return Finding("one change", "violation", sentence, run_labels(runs), {"keys": keys})


def _came_to(runs: Sequence[RunRecord], keys: Sequence[str]) -> list[str]:
    """Each key with what it came to, and for whom."""
    return with_values({run: {} for run in runs}, keys)


def _seen_in(run: RunRecord) -> dict[str, Any]:
    """What a run recorded of its steps, whatever its recipe says: rows in one, and tokens in a row."""
    found = {"rows in a step": run.experiment.get("global_batch_size"), "tokens in a row": run.sequence_length}
    return {key: value for key, value in found.items() if value is not None}


def _other_steps(runs: Sequence[RunRecord]) -> bool:
    """Whether runs had steps or rows of different sizes that no key of their recipes explains."""
    sizes = {repr(_seen_in(run)) for run in runs}
    return len(sizes) > 1 and not any(re.fullmatch(ABOUT["tokens"], key) for key in changed_keys(runs))


def _tuned(runs: Sequence[RunRecord]) -> bool:
    return len({run.learning_rate for run in runs}) > 1


def _clipped(run: RunRecord) -> float | None:
    """The share of the logged steps whose gradient was longer than `max_grad_norm`; None where that was not logged, or
    is off. A run that ended as soon as its probe was solved counts without its last row, whose gradient is that of a
    solved task, and only with `ENOUGH_LOGGED` others."""
    limit = (run.config.get("training") or {}).get("max_grad_norm", 1.0)
    norms = [row["grad_norm"] for row in run.metrics if isinstance(row.get("grad_norm"), (int, float))]
    if run.stopped_early:
        norms = norms[:-1] if len(norms) > ENOUGH_LOGGED else []
    return sum(norm > limit for norm in norms) / len(norms) if norms and limit else None


def _end_of_rate(run: RunRecord) -> float | None:
    """The last learning rate over the highest, by the metrics; None where these do not say, or a probe ended early. A
    decay after the last logged step shows in the recipe alone."""
    rows = [row for row in run.metrics if isinstance(row.get("learning_rate"), (int, float))]
    rates = [row["learning_rate"] for row in rows]
    if len(rates) < 3 or max(rates) <= 0 or run.stopped_early:
        return None
    training = run.config.get("training") or {}
    unlogged = (run.numbers.get("steps") or training.get("max_steps") or 0) - rows[-1].get("step", 0)
    if unlogged > 0 and training.get("lr_scheduler_type"):
        found = recorded_schedule(run)
        return None if found is None else found[0].end(found[1])
    return rates[-1] / max(rates)


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


def _decays_exempt(run: RunRecord) -> bool | None:
    """Whether weight decay reaches a parameter that it should leave alone; None where that was not recorded."""
    groups = (run.optimizer or {}).get("groups") or []
    known = [group for group in groups if group.get("exempt") is not None]
    return any(group["exempt"] and group.get("weight_decay") for group in known) if known else None


def _trained(run: RunRecord) -> float | None:
    """The share of all parameters that the optimiser steps; None where they are shared out over processes, each of
    which records its own."""
    groups, total = (run.optimizer or {}).get("groups") or [], run.numbers.get("params_total")
    if not groups or not total or (run.launch or {}).get("processes", 1) > 1:
        return None
    return sum(group.get("parameters") or 0 for group in groups) / total


def _decaying(run: RunRecord) -> float | None:
    groups = (run.optimizer or {}).get("groups") or []
    total = sum(group.get("parameters") or 0 for group in groups)
    return sum(group.get("parameters") or 0 for group in groups if group.get("weight_decay")) / total if total else None
