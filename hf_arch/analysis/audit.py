"""The fairness audit: what stands at the head of every table, in words.

Published rankings of architectures contradict each other because tokens, learning rates, initialisation, short
convolutions or parameter counts differ in silence. Each check here looks at one of these and returns one `Finding`:

    ok         looked at, and the same for every run
    note       worth knowing; the comparison stands
    violation  the comparison is not fair in this respect, or a number in it cannot be used

A check that lacks what it needs says so in a note. Nothing is left out, and nothing is repaired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from hf_arch.analysis.finding import (
    SEVERITIES,
    Finding,
    Severity,
    by_name,
    by_value,
    distinct,
    group_keys,
    listed,
    not_recorded,
    rates_text,
    run_count,
    run_labels,
    run_names,
    same,
    same_fingerprint,
)
from hf_arch.core.files import finite
from hf_arch.numerics import numerics_version
from hf_arch.runs.record import RunRecord
from hf_arch.runs.run_settings import has_short_convolution, shared_settings

PARAMETER_TOLERANCE = 0.01
MIN_SEEDS = 3


def audit(runs: Sequence[RunRecord]) -> list[Finding]:
    """Every check over these runs; violations first, then notes, then what was found in order."""
    findings = [finding for check in CHECKS if (finding := check(runs)) is not None]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def check_finished(runs: Sequence[RunRecord]) -> Finding:
    """Crashed, interrupted, unfinished and NaN runs: none of them enters a number of the table."""
    broken = [run for run in runs if not run.completed]
    if not broken:
        return Finding(
            "finished", "ok", f"All {run_count(runs)} completed with a finite validation loss.", run_labels(runs)
        )
    reasons = "; ".join(f"{run.label}: {_reason(run)}" for run in broken)
    return Finding(
        "finished",
        "violation",
        f"{len(broken)} of {run_count(runs)} did not complete, and no number below counts them: {reasons}.",
        run_labels(broken),
    )


def check_finite(runs: Sequence[RunRecord]) -> Finding | None:
    """Losses or gradients that were NaN or infinite somewhere on the way (such steps are skipped), whatever the end."""
    spoiled = {
        run: step
        for run in runs
        if (step := next((row.get("step") for row in run.metrics if _is_not_finite(row)), None)) is not None
    }
    if not spoiled:
        return None
    where = "; ".join(f"{run.label} first at step {step}" for run, step in spoiled.items())
    return Finding(
        "finite",
        "violation",
        f"The loss or its gradient was not a finite number in training: {where}.",
        run_labels(spoiled),
    )


def check_tokens(runs: Sequence[RunRecord]) -> Finding:
    """The same number of training tokens: a run cut short is caught here too. A probe may end once it is solved."""
    counted = [run for run in runs if run.completed]
    if solved := [run for run in counted if run.stopped_early]:
        least, most = (int(pick(run.numbers.get("tokens_seen", 0) for run in counted)) for pick in (min, max))
        sentence = (
            f"Training ended as soon as the probe was solved for {run_names(solved)}: {least:,} to {most:,} tokens."
        )
        return Finding("tokens", "note", sentence, run_labels(solved))
    return same(
        counted,
        "tokens",
        lambda run: run.numbers.get("tokens_seen"),
        ok=lambda tokens: f"Same tokens: every completed run saw {int(tokens):,} tokens.",
        differs="Tokens differ",
        show=lambda tokens: f"{int(tokens):,}",
        unknown="tokens_seen",
    )


def check_data(runs: Sequence[RunRecord]) -> Finding:
    """The same corpus, split and packing, by fingerprint."""
    return same_fingerprint(runs, "data")


def check_tokenizer(runs: Sequence[RunRecord]) -> Finding:
    """The same tokenizer: losses in nats per token mean nothing across two of them (bits per byte still do)."""
    return same_fingerprint(runs, "tokenizer")


def check_order(runs: Sequence[RunRecord]) -> Finding:
    """The same data order for all runs of one seed, which is what pairs the differences."""
    known = [run for run in runs if _order(run)]
    if missing := [run for run in runs if run.completed and run not in known]:
        return not_recorded("order", "order_fingerprint", missing)
    by_seed = {seed: by_value(group, _order) for seed, group in by_value(known, lambda run: run.seed).items()}
    unequal = sorted((seed for seed, orders in by_seed.items() if len(orders) > 1), key=str)
    if unequal:
        text = "; ".join(f"{order}: {run_names(group)}" for order, group in by_seed[unequal[0]].items())
        seeds = ", ".join(map(str, unequal))
        sentence = f"Data order differs between runs of one seed (seeds {seeds}); for seed {unequal[0]}, {text}."
        return Finding("order", "violation", sentence, run_labels(run for run in known if run.seed in unequal))
    return Finding(
        "order", "ok", "Same data order: runs of one seed saw the same sequences in the same order.", run_labels(runs)
    )


def check_learning_rates(runs: Sequence[RunRecord]) -> Finding:
    """The same learning-rate budget: every architecture tried the same rates."""
    if unknown := [run for run in runs if run.learning_rate is None]:
        return not_recorded("learning rates", "learning_rate", unknown)
    tried = {
        name: tuple(sorted({run.learning_rate for run in group if run.learning_rate is not None}))
        for name, group in by_name(runs).items()
    }
    budgets = group_keys(tried)
    if len(budgets) == 1:
        rates = next(iter(budgets))
        text = f"every architecture was trained at {rates_text(rates)}"
        text += ": the best is in the table." if len(rates) > 1 else " (one rate: none of them was tuned)."
        return Finding(
            "learning rates", "ok" if len(rates) > 1 else "note", f"Same learning-rate budget: {text}", run_labels(runs)
        )
    sampled = by_value(list(runs), lambda run: str(run.experiment.get("tune")))
    if len(sampled) == 1 and "None" not in sampled and len({len(rates) for rates in budgets}) == 1:
        tune = runs[0].experiment["tune"]
        text = f"{len(next(iter(budgets)))} rates each, sampled from {tune['low']:g} to {tune['high']:g}"
        return Finding("learning rates", "ok", f"Same learning-rate budget: {text}.", run_labels(runs))
    text = "; ".join(f"{listed(names)}: {rates_text(rates)}" for rates, names in budgets.items())
    return Finding("learning rates", _unless_asked(runs), f"Learning-rate budget differs: {text}.", run_labels(runs))


def check_parameters(runs: Sequence[RunRecord]) -> Finding:
    """Parameters within 1 %, or the reason why they should differ."""
    counts = {name: group[0].numbers.get("params_total") for name, group in by_name(runs).items()}
    if missing := [run for run in runs if "params_total" not in run.numbers and run.completed]:
        return not_recorded("parameters", "params_total", missing)
    known = {name: count for name, count in counts.items() if count}
    if len(known) < 2:
        return Finding("parameters", "ok", "Parameters: one architecture, nothing to match.", run_labels(runs))
    small, large = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    mismatch = known[large] / known[small] - 1
    if mismatch <= PARAMETER_TOLERANCE:
        return Finding("parameters", "ok", f"Parameters match within {mismatch:.2%} (limit 1 %).", run_labels(runs))
    sentence = (
        f"Parameters differ by {_excess(mismatch)} (limit 1 %): {small} has {int(known[small]):,}, "
        f"{large} has {int(known[large]):,}"
    )
    declared = max((finite(_match(run).get("tolerance")) or 0.0 for run in runs), default=0.0)
    if mismatch <= declared and all(_match(run).get("by") == "parameters" for run in runs):
        return Finding("parameters", "note", f"{sentence}; the recipe allows {declared:.0%}.", run_labels(runs))
    for by, what in (("flops", "FLOPs per token"), ("state", "bytes of state")):
        if all(_match(run).get("by") == by for run in runs):
            return Finding("parameters", "note", f"{sentence}; the recipe matches {what} instead.", run_labels(runs))
    return Finding("parameters", "violation", f"{sentence}.", run_labels(runs))


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
    sentence = f"{what} differ by {mismatch:.2%} (declared limit {tolerance:.0%})."
    return Finding("FLOPs" if key == "flops_per_token" else "state", severity, sentence, run_labels(runs))


def check_short_convolution(runs: Sequence[RunRecord]) -> Finding:
    """A short convolution gives any mixer local context: on one side only, it is what is compared, not the mixer."""
    has = by_value(runs, has_short_convolution)
    if len(has) == 1:
        text = "every architecture has" if True in has else "no architecture has"
        return Finding("short convolution", "ok", f"Short convolution: {text} one.", run_labels(runs))
    sentence = f"Short convolution on one side only: with {run_names(has[True])}; without {run_names(has[False])}."
    return Finding("short convolution", "violation", sentence, run_labels(has[True]))


def check_init(runs: Sequence[RunRecord]) -> Finding:
    """Initialisation changed by hand decides rankings; said even where every run did it."""
    overridden = [run for run in runs if run.init_overridden]
    if unknown := [run for run in runs if run.init_overridden is None and run.completed]:
        return not_recorded("initialisation", "init_overridden", unknown)
    if not overridden:
        rules = by_value(runs, lambda run: str(run.components.get("init", "its own")))
        text = "; ".join(f"{rule}: {run_names(group)}" for rule, group in rules.items())
        sentence = f"Initialisation: every architecture uses its own default{f' ({text})' if len(rules) > 1 else ''}."
        return Finding("initialisation", "ok", sentence, run_labels(runs))
    everywhere = len(overridden) == len(runs)
    sentence = f"Initialisation overridden in {'every run' if everywhere else run_names(overridden)}."
    return Finding("initialisation", "note" if everywhere else "violation", sentence, run_labels(overridden))


def check_dropout(runs: Sequence[RunRecord]) -> Finding | None:
    """The same dropout: architectures have different defaults, and on a small corpus these decide."""
    rates = by_value([run for run in runs if "dropout" in run.components], lambda run: str(run.components["dropout"]))
    if not rates:
        return None
    if len(rates) == 1:
        return Finding("dropout", "ok", f"Same dropout: {next(iter(rates))}.", run_labels(runs))
    text = "; ".join(f"{rate}: {run_names(group)}" for rate, group in rates.items())
    return Finding("dropout", "violation", f"Dropout differs: {text}.", run_labels(runs))


def check_settings(runs: Sequence[RunRecord]) -> Finding:
    """Any other recipe setting in which the architectures differ: schedule, batch, weight decay, evaluation."""
    configured = [run for run in runs if run.config]
    settings = {run: shared_settings(run) for run in configured}
    keys = sorted({key for flat in settings.values() for key in flat})
    differing = []
    for key in keys:
        values = by_value(configured, lambda run, key=key: repr(settings[run].get(key)))  # type: ignore[misc]
        if len(values) > 1:
            differing.append(f"{key} ({'; '.join(f'{value}: {run_names(group)}' for value, group in values.items())})")
    if differing:
        sentence = f"Settings differ beside the model: {', '.join(differing)}."
        return Finding("settings", _unless_asked(runs), sentence, run_labels(runs))
    if len(configured) < len(runs):
        return Finding("settings", "note", "Settings beside the model: not recorded for every run.", run_labels(runs))
    return Finding("settings", "ok", "Same settings: data, training and evaluation sections agree.", run_labels(runs))


def check_seeds(runs: Sequence[RunRecord]) -> Finding:
    """Seeds per architecture, and whether they are the same ones."""
    seeds = {
        name: tuple(sorted({run.seed for run in group if run.completed and run.seed is not None}))
        for name, group in by_name(runs).items()
    }
    few = [name for name, found in seeds.items() if len(found) < MIN_SEEDS]
    sets = group_keys(seeds)
    if few:
        counts = "; ".join(f"{listed(names)}: {len(found)}" for found, names in sets.items() if len(found) < MIN_SEEDS)
        sentence = f"Fewer than {MIN_SEEDS} completed seeds ({counts}): intervals are wide, and one seed has none."
        return Finding("seeds", "note", sentence, run_labels(run for run in runs if run.name in few))
    if len(sets) > 1:
        text = "; ".join(f"{listed(names)}: {', '.join(map(str, found))}" for found, names in sets.items())
        return Finding(
            "seeds", "note", f"Seeds differ ({text}): differences are taken over shared seeds.", run_labels(runs)
        )
    return Finding("seeds", "ok", f"Same {len(next(iter(sets)))} seeds for every architecture.", run_labels(runs))


def check_duplicates(runs: Sequence[RunRecord]) -> Finding | None:
    """Several completed runs of one name, rate and seed: the newest counts, the others are named."""
    groups = by_value([run for run in runs if run.completed], lambda run: (run.name, run.learning_rate, run.seed))
    repeated = [group for group in groups.values() if len(group) > 1]
    if not repeated:
        return None
    text = "; ".join(f"{group[0].label}: {', '.join(run.path.name for run in group)}" for group in repeated)
    sentence = f"Several runs of one name, learning rate and seed; the newest of each counts ({text})."
    return Finding("duplicates", "violation", sentence, run_labels(run for group in repeated for run in group))


def check_versions(runs: Sequence[RunRecord]) -> Finding:
    """Package versions and the commit that produced the numbers."""
    recorded = [run for run in runs if isinstance(run.provenance.get("versions"), dict)]
    if len(recorded) < len([run for run in runs if run.completed]):
        return not_recorded("versions", "provenance.versions", [run for run in runs if run not in recorded])
    versions = {run: {**_own_version(run), **run.provenance["versions"]} for run in recorded}
    differing = []
    for package in distinct(key for used in versions.values() for key in used):
        values = distinct(used.get(package) for used in versions.values())
        if len(values) > 1:
            differing.append(f"{package} {' and '.join(str(value) for value in values)}")
    commits = distinct(state for run in recorded if (state := _code_state(run)) is not None)
    if differing:
        return Finding(
            "versions", "violation", f"Package versions differ: {', '.join(differing)}.", run_labels(recorded)
        )
    if len(commits) > 1:
        text = ", ".join(str(commit)[:10] for commit in commits)
        sentence = f"Same package versions, but the code of hf_arch changed between runs: {text}."
        return Finding("versions", "note", sentence, run_labels(recorded))
    return Finding("versions", "ok", "Same package versions and code.", run_labels(recorded))


def check_devices(runs: Sequence[RunRecord]) -> Finding:
    """Device and threads: speed and memory compare only on the same ones."""
    measured = [run for run in runs if run.completed]
    machines = by_value(measured, lambda run: (run.provenance.get("device"), run.provenance.get("threads")))
    if unknown := [run for run in measured if run.provenance.get("device") is None]:
        return not_recorded("device", "provenance.device", unknown)
    if len(machines) <= 1:
        return Finding(
            "device", "ok", f"Same device: {_machine(next(iter(machines), (None, None)))}.", run_labels(measured)
        )
    text = "; ".join(f"{_machine(machine)}: {run_names(group)}" for machine, group in machines.items())
    return Finding(
        "device", "violation", f"Devices differ, so speeds and memory do not compare: {text}.", run_labels(measured)
    )


def check_utilisation(runs: Sequence[RunRecord]) -> Finding | None:
    """A model-FLOPs utilisation above 1 means that the FLOPs, the clock or the peak are wrong."""
    impossible = [run for run in runs if run.numbers.get("mfu", 0.0) > 1.0]
    if not impossible:
        return None
    text = ", ".join(f"{run.label} {run.numbers['mfu']:.0%}" for run in impossible)
    return Finding("utilisation", "violation", f"MFU above 100 % cannot be: {text}.", run_labels(impossible))


CHECKS: tuple[Callable[[Sequence[RunRecord]], Finding | None], ...] = (
    check_finished,
    check_finite,
    check_tokens,
    check_data,
    check_tokenizer,
    check_order,
    check_learning_rates,
    check_parameters,
    check_matched_size,
    check_short_convolution,
    check_init,
    check_dropout,
    check_settings,
    check_seeds,
    check_duplicates,
    check_versions,
    check_devices,
    check_utilisation,
)


def _excess(mismatch: float) -> str:
    """By how much the larger exceeds the smaller: in per cent, or as a factor where it is more than double."""
    return f"{mismatch:.1%}" if mismatch < 1 else f"a factor of {mismatch + 1:.3g}"


def _order(run: RunRecord) -> Any:
    return run.order_fingerprint


def _unless_asked(runs: Sequence[RunRecord]) -> Severity:
    """Severity of a difference in training: one model under several settings is a question about the settings."""
    models = {repr(run.config.get("model")) for run in runs}
    return "note" if len(models) == 1 and all(run.config for run in runs) else "violation"


def _reason(run: RunRecord) -> str:
    if run.status == "completed":
        return "completed without a finite validation loss"
    if run.status == "running":
        return "no result yet (still running, or killed)"
    why = str(run.provenance.get("exit_reason") or "no reason recorded").strip()
    return f"{run.status} ({why.splitlines()[-1] if why else why})"


def _is_not_finite(row: dict[str, Any]) -> bool:
    spoiled = any(isinstance(row.get(key), float) and not math.isfinite(row[key]) for key in ("loss", "val_loss"))
    return spoiled or row.get("event") == "skipped step"


def _match(run: RunRecord) -> dict[str, Any]:
    match = run.experiment.get("match")
    return match if isinstance(match, dict) else {}


def _own_version(run: RunRecord) -> dict[str, Any]:
    """What of our own version changes numbers; where that was not recorded, the version itself."""
    numerics = numerics_version(run.provenance)
    return {"hf_arch": run.provenance.get("hf_arch")} if numerics is None else {"numerics of hf_arch": numerics}


def _code_state(run: RunRecord) -> Any:
    """What tells two states of the code apart: the digest of the sources, or the commit."""
    return run.provenance.get("source_sha256") or run.provenance.get("git_commit")


def _machine(machine: tuple[Any, Any]) -> str:
    device, threads = machine
    return f"{device}" + (f", {threads} thread{'s' if threads != 1 else ''}" if threads else "")
