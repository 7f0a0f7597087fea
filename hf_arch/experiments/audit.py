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
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hf_arch.experiments.run_settings import has_short_convolution, shared_settings
from hf_arch.experiments.store import RunResult, finite
from hf_arch.numerics import numerics_version

Severity = Literal["violation", "note", "ok"]
SEVERITIES: tuple[Severity, ...] = ("violation", "note", "ok")
PARAMETER_TOLERANCE = 0.01
MIN_SEEDS = 3


@dataclass(frozen=True)
class Finding:
    """One sentence of the audit, and the runs that it concerns (all of them where it holds for every run)."""

    check: str
    severity: Severity
    sentence: str
    runs: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def audit(runs: Sequence[RunResult]) -> list[Finding]:
    """Every check over these runs; violations first, then notes, then what was found in order."""
    findings = [finding for check in CHECKS if (finding := check(runs)) is not None]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def check_finished(runs: Sequence[RunResult]) -> Finding:
    """Crashed, interrupted, unfinished and NaN runs: none of them enters a number of the table."""
    broken = [run for run in runs if not run.completed]
    if not broken:
        return Finding("finished", "ok", f"All {_count(runs)} completed with a finite validation loss.", _labels(runs))
    reasons = "; ".join(f"{run.label}: {_reason(run)}" for run in broken)
    return Finding(
        "finished",
        "violation",
        f"{len(broken)} of {_count(runs)} did not complete, and no number below counts them: {reasons}.",
        _labels(broken),
    )


def check_finite(runs: Sequence[RunResult]) -> Finding | None:
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
        _labels(spoiled),
    )


def check_tokens(runs: Sequence[RunResult]) -> Finding:
    """The same number of training tokens: a run cut short is caught here too. A probe may end once it is solved."""
    counted = [run for run in runs if run.completed]
    if solved := [run for run in counted if run.results.get("stopped_early")]:
        least, most = (int(pick(run.numbers.get("tokens_seen", 0) for run in counted)) for pick in (min, max))
        sentence = f"Training ended as soon as the probe was solved for {_names(solved)}: {least:,} to {most:,} tokens."
        return Finding("tokens", "note", sentence, _labels(solved))
    return _same(
        counted,
        "tokens",
        lambda run: run.numbers.get("tokens_seen"),
        ok=lambda tokens: f"Same tokens: every completed run saw {int(tokens):,} tokens.",
        differs="Tokens differ",
        show=lambda tokens: f"{int(tokens):,}",
        unknown="tokens_seen",
    )


def check_data(runs: Sequence[RunResult]) -> Finding:
    """The same corpus, split and packing, by fingerprint."""
    return _same_fingerprint(runs, "data")


def check_tokenizer(runs: Sequence[RunResult]) -> Finding:
    """The same tokenizer: losses in nats per token mean nothing across two of them (bits per byte still do)."""
    return _same_fingerprint(runs, "tokenizer")


def check_order(runs: Sequence[RunResult]) -> Finding:
    """The same data order for all runs of one seed, which is what pairs the differences."""
    known = [run for run in runs if _order(run)]
    if missing := [run for run in runs if run.completed and run not in known]:
        return _not_recorded("order", "order_fingerprint", missing)
    by_seed = {seed: _by_value(group, _order) for seed, group in _by_value(known, lambda run: run.seed).items()}
    unequal = sorted((seed for seed, orders in by_seed.items() if len(orders) > 1), key=str)
    if unequal:
        text = "; ".join(f"{order}: {_names(group)}" for order, group in by_seed[unequal[0]].items())
        seeds = ", ".join(map(str, unequal))
        sentence = f"Data order differs between runs of one seed (seeds {seeds}); for seed {unequal[0]}, {text}."
        return Finding("order", "violation", sentence, _labels(run for run in known if run.seed in unequal))
    return Finding(
        "order", "ok", "Same data order: runs of one seed saw the same sequences in the same order.", _labels(runs)
    )


def check_learning_rates(runs: Sequence[RunResult]) -> Finding:
    """The same learning-rate budget: every architecture tried the same rates."""
    if unknown := [run for run in runs if run.learning_rate is None]:
        return _not_recorded("learning rates", "learning_rate", unknown)
    tried = {
        name: tuple(sorted({run.learning_rate for run in group if run.learning_rate is not None}))
        for name, group in _by_name(runs).items()
    }
    budgets = _group_keys(tried)
    if len(budgets) == 1:
        rates = next(iter(budgets))
        text = f"every architecture was trained at {_rates(rates)}"
        text += ": the best is in the table." if len(rates) > 1 else " (one rate: none of them was tuned)."
        return Finding(
            "learning rates", "ok" if len(rates) > 1 else "note", f"Same learning-rate budget: {text}", _labels(runs)
        )
    sampled = _by_value(list(runs), lambda run: str(run.experiment.get("tune")))
    if len(sampled) == 1 and "None" not in sampled and len({len(rates) for rates in budgets}) == 1:
        tune = runs[0].experiment["tune"]
        text = f"{len(next(iter(budgets)))} rates each, sampled from {tune['low']:g} to {tune['high']:g}"
        return Finding("learning rates", "ok", f"Same learning-rate budget: {text}.", _labels(runs))
    text = "; ".join(f"{_list(names)}: {_rates(rates)}" for rates, names in budgets.items())
    return Finding("learning rates", _unless_asked(runs), f"Learning-rate budget differs: {text}.", _labels(runs))


def check_parameters(runs: Sequence[RunResult]) -> Finding:
    """Parameters within 1 %, or the reason why they should differ."""
    counts = {name: group[0].numbers.get("params_total") for name, group in _by_name(runs).items()}
    if missing := [run for run in runs if "params_total" not in run.numbers and run.completed]:
        return _not_recorded("parameters", "params_total", missing)
    known = {name: count for name, count in counts.items() if count}
    if len(known) < 2:
        return Finding("parameters", "ok", "Parameters: one architecture, nothing to match.", _labels(runs))
    small, large = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    mismatch = known[large] / known[small] - 1
    if mismatch <= PARAMETER_TOLERANCE:
        return Finding("parameters", "ok", f"Parameters match within {mismatch:.2%} (limit 1 %).", _labels(runs))
    sentence = (
        f"Parameters differ by {_excess(mismatch)} (limit 1 %): {small} has {int(known[small]):,}, "
        f"{large} has {int(known[large]):,}"
    )
    declared = max((finite(_match(run).get("tolerance")) or 0.0 for run in runs), default=0.0)
    if mismatch <= declared and all(_match(run).get("by") == "parameters" for run in runs):
        return Finding("parameters", "note", f"{sentence}; the recipe allows {declared:.0%}.", _labels(runs))
    for by, what in (("flops", "FLOPs per token"), ("state", "bytes of state")):
        if all(_match(run).get("by") == by for run in runs):
            return Finding("parameters", "note", f"{sentence}; the recipe matches {what} instead.", _labels(runs))
    return Finding("parameters", "violation", f"{sentence}.", _labels(runs))


def check_matched_size(runs: Sequence[RunResult]) -> Finding | None:
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
    return Finding("FLOPs" if key == "flops_per_token" else "state", severity, sentence, _labels(runs))


def check_short_convolution(runs: Sequence[RunResult]) -> Finding:
    """A short convolution gives any mixer local context: on one side only, it is what is compared, not the mixer."""
    has = _by_value(runs, has_short_convolution)
    if len(has) == 1:
        text = "every architecture has" if True in has else "no architecture has"
        return Finding("short convolution", "ok", f"Short convolution: {text} one.", _labels(runs))
    sentence = f"Short convolution on one side only: with {_names(has[True])}; without {_names(has[False])}."
    return Finding("short convolution", "violation", sentence, _labels(has[True]))


def check_init(runs: Sequence[RunResult]) -> Finding:
    """Initialisation changed by hand decides rankings; said even where every run did it."""
    overridden = [run for run in runs if run.results.get("init_overridden")]
    if unknown := [run for run in runs if "init_overridden" not in run.results and run.completed]:
        return _not_recorded("initialisation", "init_overridden", unknown)
    if not overridden:
        rules = _by_value(runs, lambda run: str(run.components.get("init", "its own")))
        text = "; ".join(f"{rule}: {_names(group)}" for rule, group in rules.items())
        sentence = f"Initialisation: every architecture uses its own default{f' ({text})' if len(rules) > 1 else ''}."
        return Finding("initialisation", "ok", sentence, _labels(runs))
    everywhere = len(overridden) == len(runs)
    sentence = f"Initialisation overridden in {'every run' if everywhere else _names(overridden)}."
    return Finding("initialisation", "note" if everywhere else "violation", sentence, _labels(overridden))


def check_dropout(runs: Sequence[RunResult]) -> Finding | None:
    """The same dropout: architectures have different defaults, and on a small corpus these decide."""
    rates = _by_value([run for run in runs if "dropout" in run.components], lambda run: str(run.components["dropout"]))
    if not rates:
        return None
    if len(rates) == 1:
        return Finding("dropout", "ok", f"Same dropout: {next(iter(rates))}.", _labels(runs))
    text = "; ".join(f"{rate}: {_names(group)}" for rate, group in rates.items())
    return Finding("dropout", "violation", f"Dropout differs: {text}.", _labels(runs))


def check_settings(runs: Sequence[RunResult]) -> Finding:
    """Any other recipe setting in which the architectures differ: schedule, batch, weight decay, evaluation."""
    configured = [run for run in runs if run.config]
    settings = {run: shared_settings(run) for run in configured}
    keys = sorted({key for flat in settings.values() for key in flat})
    differing = []
    for key in keys:
        values = _by_value(configured, lambda run, key=key: repr(settings[run].get(key)))  # type: ignore[misc]
        if len(values) > 1:
            differing.append(f"{key} ({'; '.join(f'{value}: {_names(group)}' for value, group in values.items())})")
    if differing:
        sentence = f"Settings differ beside the model: {', '.join(differing)}."
        return Finding("settings", _unless_asked(runs), sentence, _labels(runs))
    if len(configured) < len(runs):
        return Finding("settings", "note", "Settings beside the model: not recorded for every run.", _labels(runs))
    return Finding("settings", "ok", "Same settings: data, training and evaluation sections agree.", _labels(runs))


def check_seeds(runs: Sequence[RunResult]) -> Finding:
    """Seeds per architecture, and whether they are the same ones."""
    seeds = {
        name: tuple(sorted({run.seed for run in group if run.completed and run.seed is not None}))
        for name, group in _by_name(runs).items()
    }
    few = [name for name, found in seeds.items() if len(found) < MIN_SEEDS]
    sets = _group_keys(seeds)
    if few:
        counts = "; ".join(f"{_list(names)}: {len(found)}" for found, names in sets.items() if len(found) < MIN_SEEDS)
        sentence = f"Fewer than {MIN_SEEDS} completed seeds ({counts}): intervals are wide, and one seed has none."
        return Finding("seeds", "note", sentence, _labels(run for run in runs if run.name in few))
    if len(sets) > 1:
        text = "; ".join(f"{_list(names)}: {', '.join(map(str, found))}" for found, names in sets.items())
        return Finding(
            "seeds", "note", f"Seeds differ ({text}): differences are taken over shared seeds.", _labels(runs)
        )
    return Finding("seeds", "ok", f"Same {len(next(iter(sets)))} seeds for every architecture.", _labels(runs))


def check_duplicates(runs: Sequence[RunResult]) -> Finding | None:
    """Several completed runs of one name, rate and seed: the newest counts, the others are named."""
    groups = _by_value([run for run in runs if run.completed], lambda run: (run.name, run.learning_rate, run.seed))
    repeated = [group for group in groups.values() if len(group) > 1]
    if not repeated:
        return None
    text = "; ".join(f"{group[0].label}: {', '.join(run.path.name for run in group)}" for group in repeated)
    sentence = f"Several runs of one name, learning rate and seed; the newest of each counts ({text})."
    return Finding("duplicates", "violation", sentence, _labels(run for group in repeated for run in group))


def check_versions(runs: Sequence[RunResult]) -> Finding:
    """Package versions and the commit that produced the numbers."""
    recorded = [run for run in runs if isinstance(run.provenance.get("versions"), dict)]
    if len(recorded) < len([run for run in runs if run.completed]):
        return _not_recorded("versions", "provenance.versions", [run for run in runs if run not in recorded])
    versions = {run: {**_own_version(run), **run.provenance["versions"]} for run in recorded}
    differing = []
    for package in _distinct(key for used in versions.values() for key in used):
        values = _distinct(used.get(package) for used in versions.values())
        if len(values) > 1:
            differing.append(f"{package} {' and '.join(str(value) for value in values)}")
    commits = _distinct(state for run in recorded if (state := _code_state(run)) is not None)
    if differing:
        return Finding("versions", "violation", f"Package versions differ: {', '.join(differing)}.", _labels(recorded))
    if len(commits) > 1:
        text = ", ".join(str(commit)[:10] for commit in commits)
        sentence = f"Same package versions, but the code of hf_arch changed between runs: {text}."
        return Finding("versions", "note", sentence, _labels(recorded))
    return Finding("versions", "ok", "Same package versions and code.", _labels(recorded))


def check_devices(runs: Sequence[RunResult]) -> Finding:
    """Device and threads: speed and memory compare only on the same ones."""
    measured = [run for run in runs if run.completed]
    machines = _by_value(measured, lambda run: (run.provenance.get("device"), run.provenance.get("threads")))
    if unknown := [run for run in measured if run.provenance.get("device") is None]:
        return _not_recorded("device", "provenance.device", unknown)
    if len(machines) <= 1:
        return Finding(
            "device", "ok", f"Same device: {_machine(next(iter(machines), (None, None)))}.", _labels(measured)
        )
    text = "; ".join(f"{_machine(machine)}: {_names(group)}" for machine, group in machines.items())
    return Finding(
        "device", "violation", f"Devices differ, so speeds and memory do not compare: {text}.", _labels(measured)
    )


def check_utilisation(runs: Sequence[RunResult]) -> Finding | None:
    """A model-FLOPs utilisation above 1 means that the FLOPs, the clock or the peak are wrong."""
    impossible = [run for run in runs if run.numbers.get("mfu", 0.0) > 1.0]
    if not impossible:
        return None
    text = ", ".join(f"{run.label} {run.numbers['mfu']:.0%}" for run in impossible)
    return Finding("utilisation", "violation", f"MFU above 100 % cannot be: {text}.", _labels(impossible))


CHECKS: tuple[Callable[[Sequence[RunResult]], Finding | None], ...] = (
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


def _same_fingerprint(runs: Sequence[RunResult], what: str) -> Finding:
    return _same(
        runs,
        what,
        lambda run: run.results.get(f"{what}_fingerprint"),
        ok=lambda value: f"Same {what} (fingerprint {str(value)[:12]}).",
        differs=f"{what.capitalize()} differs",
        show=lambda value: str(value)[:12],
        unknown=f"{what}_fingerprint",
    )


def _same(
    runs: Sequence[RunResult],
    check: str,
    value_of: Callable[[RunResult], Any],
    *,
    ok: Callable[[Any], str],
    differs: str,
    show: Callable[[Any], str],
    unknown: str,
) -> Finding:
    """A finding for a value that every run should share."""
    values = _by_value([run for run in runs if value_of(run) is not None], value_of)
    if len(values) > 1:
        text = "; ".join(f"{show(value)}: {_names(group)}" for value, group in values.items())
        return Finding(check, "violation", f"{differs}: {text}.", _labels(runs))
    if missing := [run for run in runs if value_of(run) is None and run.completed]:
        return _not_recorded(check, unknown, missing)
    if not values:
        return Finding(check, "note", f"{check.capitalize()}: nothing completed, nothing to check.", _labels(runs))
    return Finding(check, "ok", ok(next(iter(values))), _labels(runs))


def _not_recorded(check: str, key: str, runs: Sequence[RunResult]) -> Finding:
    sentence = f"{check.capitalize()}: cannot be checked, {key} is not recorded for {_names(runs)}."
    return Finding(check, "note", sentence, _labels(runs))


def _excess(mismatch: float) -> str:
    """By how much the larger exceeds the smaller: in per cent, or as a factor where it is more than double."""
    return f"{mismatch:.1%}" if mismatch < 1 else f"a factor of {mismatch + 1:.3g}"


def _order(run: RunResult) -> Any:
    return run.results.get("order_fingerprint")


def _unless_asked(runs: Sequence[RunResult]) -> Severity:
    """Severity of a difference in training: one model under several settings is a question about the settings."""
    models = {repr(run.config.get("model")) for run in runs}
    return "note" if len(models) == 1 and all(run.config for run in runs) else "violation"


def _reason(run: RunResult) -> str:
    if run.status == "completed":
        return "completed without a finite validation loss"
    if run.status == "running":
        return "no result yet (still running, or killed)"
    why = str(run.provenance.get("exit_reason") or "no reason recorded").strip()
    return f"{run.status} ({why.splitlines()[-1] if why else why})"


def _is_not_finite(row: dict[str, Any]) -> bool:
    spoiled = any(isinstance(row.get(key), float) and not math.isfinite(row[key]) for key in ("loss", "val_loss"))
    return spoiled or row.get("event") == "skipped step"


def _match(run: RunResult) -> dict[str, Any]:
    match = run.experiment.get("match")
    return match if isinstance(match, dict) else {}


def _own_version(run: RunResult) -> dict[str, Any]:
    """What of our own version changes numbers; where that was not recorded, the version itself."""
    numerics = numerics_version(run.provenance)
    return {"hf_arch": run.provenance.get("hf_arch")} if numerics is None else {"numerics of hf_arch": numerics}


def _code_state(run: RunResult) -> Any:
    """What tells two states of the code apart: the digest of the sources, or the commit."""
    return run.provenance.get("source_sha256") or run.provenance.get("git_commit")


def _machine(machine: tuple[Any, Any]) -> str:
    device, threads = machine
    return f"{device}" + (f", {threads} thread{'s' if threads != 1 else ''}" if threads else "")


def _by_value(runs: Iterable[RunResult], value_of: Callable[[RunResult], Any]) -> dict[Any, list[RunResult]]:
    groups: dict[Any, list[RunResult]] = {}
    for run in runs:
        groups.setdefault(value_of(run), []).append(run)
    return groups


def _by_name(runs: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    return _by_value(runs, lambda run: run.name)


def _group_keys(values: dict[str, Any]) -> dict[Any, list[str]]:
    """{value: names that have it} from {name: value}."""
    groups: dict[Any, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return groups


def _distinct(values: Iterable[Hashable]) -> list[Any]:
    return list(dict.fromkeys(values))


def _labels(runs: Iterable[RunResult]) -> tuple[str, ...]:
    return tuple(_distinct(run.label for run in runs))


def _names(runs: Iterable[RunResult]) -> str:
    return _list(_distinct(run.name for run in runs))


def _list(names: Sequence[str], limit: int = 6) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.3g}" for rate in rates)


def _count(runs: Sequence[RunResult]) -> str:
    return f"{len(runs)} run{'s' if len(runs) != 1 else ''}"
