"""Whether the numbers can be used: failed runs, repeated ones, versions, code, devices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_arch.analysis.finding import Finding, Severity, not_recorded
from hf_arch.analysis.run_names import by_value, code_state, distinct, run_count, run_labels, run_names, values_by_run
from hf_arch.numerics import numerics_version
from hf_arch.runs.numbers import read_number
from hf_arch.runs.record import RunRecord

SPEED_ONLY = r"environment\.(threads|processes|per_device_\w+|gradient_accumulation_steps|platform|python)"
"""Changes of a resumed run that move the last digits of its loss alone."""

ALIKE = 1e-3
"""How far numbers that follow from each other may be apart, relatively."""
LARGEST_LOSS = 50.0
"""Of which a perplexity is written."""

MEASURED = {"HF_ARCH_BACKEND": "kernels", "HF_ARCH_PRECISION": "precision"}
"""Variable of the environment -> what a run records of its effect, which has a check of its own."""

RESTS_ON = (
    "data_fingerprint",
    "tokenizer_fingerprint",
    "order_fingerprint",
    "init_fingerprint",
    "init_overridden",
    "branch_scale",
    "short_convolution",
    "optimizer",
    "kernels",
    "precision",
    "learning_rate",
    "tokens_seen",
    "params_total",
    "provenance.versions",
    "run.config",
)
"""What checks look at, which a run of now always records."""


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
        {run.label: run.status for run in broken},
    )


def check_dropped(runs: Sequence[RunRecord]) -> Finding | None:
    """Seeds that were begun at the rate which counts and have no number: what is left may be the better part."""
    dropped = []
    for group in by_value(runs, lambda run: run.name).values():
        counted = by_value([run for run in group if run.completed], lambda run: run.learning_rate)
        rate = max(counted, key=lambda rate: len(counted[rate]), default=None)
        known = {run.seed for run in counted.get(rate, ())}
        dropped += [run for run in group if run.learning_rate == rate and run.seed not in known]
    if not dropped:
        return None
    sentence = f"Runs that did not complete are left out, and the rest may be the better part: {_labels(dropped)}."
    return Finding("dropped runs", "violation", sentence, run_labels(dropped), {r.label: r.status for r in dropped})


def check_changes(runs: Sequence[RunRecord]) -> Finding | None:
    """What was changed when a run was resumed or extended: the same for every run, or a reason for a difference."""
    changed = {run: _changes(run) for run in runs if run.completed}
    if len(by_value(changed, _begun)) > 1:
        changed = {run: (*what, f"begun {_begun(run)}") for run, what in changed.items()}
    kinds = by_value(changed, lambda run: changed[run])
    if not any(kinds):
        return None
    text = "; ".join(f"{', '.join(what) or 'nothing'}: {run_names(group)}" for what, group in kinds.items())
    severity: Severity = "violation" if len(kinds) > 1 else "note"
    sentence = f"Changed when runs were resumed or extended: {text}."
    return Finding("resumed", severity, sentence, run_labels(changed), {r.label: list(w) for r, w in changed.items()})


def check_finite(runs: Sequence[RunRecord]) -> Finding | None:
    """Losses or gradients that were NaN or infinite during training (such steps are skipped), whatever the end."""
    spoiled = {
        run: f"first at step {step}"
        for run in runs
        if (step := next((row.get("step") for row in run.metrics if _is_not_finite(row)), None)) is not None
    }
    for run in runs:
        if run not in spoiled and (skipped := run.numbers.get("skipped_steps")):
            spoiled[run] = f"{int(skipped)} steps skipped"
    if not spoiled:
        return None
    where = "; ".join(f"{run.label} {words}" for run, words in spoiled.items())
    return Finding(
        "finite",
        "violation",
        f"The loss or its gradient was not a finite number in training: {where}.",
        run_labels(spoiled),
        {run.label: words for run, words in spoiled.items()},
    )


def check_recorded(runs: Sequence[RunRecord]) -> Finding | None:
    """What the audit rests on, recorded for some runs and not for others: there it cannot rule a difference out."""
    completed = [run for run in runs if run.completed]
    missing = {key: [run for run in completed if not _has(run, key)] for key in RESTS_ON}
    partly = {key: found for key, found in missing.items() if 0 < len(found) < len(completed)}
    if not partly:
        return None
    text = "; ".join(f"{key}: not of {run_names(found)}" for key, found in partly.items())
    sentence = f"Recorded for some runs alone, so that a difference in it cannot be ruled out: {text}."
    return Finding("recorded", "violation", sentence, run_labels(runs), {"keys": list(partly)})


def check_duplicates(runs: Sequence[RunRecord]) -> Finding | None:
    """Several completed runs of one name, rate and seed: the newest counts, the others are named."""
    groups = by_value([run for run in runs if run.completed], lambda run: (run.name, run.learning_rate, run.seed))
    repeated = [group for group in groups.values() if len(group) > 1]
    if not repeated:
        return None
    text = "; ".join(f"{group[0].label}: {', '.join(run.path.name for run in group)}" for group in repeated)
    sentence = f"Several runs of one name, learning rate and seed; the newest of each counts ({text})."
    differ = any(len({run.numbers["final_val_loss"] for run in group}) > 1 for group in repeated)
    severity: Severity = "violation" if differ else "note"
    losses = {run.path.name: run.numbers["final_val_loss"] for group in repeated for run in group}
    return Finding("duplicates", severity, sentence, run_labels(run for group in repeated for run in group), losses)


def check_versions(runs: Sequence[RunRecord]) -> Finding:
    """Versions of the packages that produced the numbers."""
    recorded = [run for run in runs if isinstance(run.provenance.get("versions"), dict)]
    if len(recorded) < len([run for run in runs if run.completed]):
        return not_recorded("versions", "provenance.versions", [run for run in runs if run not in recorded])
    versions = {run: {**_own_version(run), **run.provenance["versions"]} for run in recorded}
    differing, apart = [], {}
    for package in distinct(key for used in versions.values() for key in used):
        values = distinct(used.get(package) for used in versions.values())
        if len(values) > 1:
            apart[package] = {run.label: used.get(package) for run, used in versions.items()}
            differing.append(f"{package} {' and '.join(str(value) for value in values)}")
    if differing:
        sentence = f"Package versions differ: {', '.join(differing)}."
        return Finding("versions", "violation", sentence, run_labels(recorded), apart)
    return Finding("versions", "ok", "Same package versions.", run_labels(recorded))


def check_code(runs: Sequence[RunRecord]) -> Finding:
    """The same code: of the package, and of each of the user's own files that several runs use."""
    plugins: dict[str, dict[str, list[RunRecord]]] = {}
    for run in runs:
        for file, digest in _plugins(run).items():
            plugins.setdefault(file, {}).setdefault(str(digest), []).append(run)
    changed = {file: found for file, found in plugins.items() if len(found) > 1}
    if changed:
        file, found = next(iter(changed.items()))
        text = "; ".join(f"{digest[:10]}: {run_names(group)}" for digest, group in found.items())
        sentence = f"Code of {file} differs between runs: {text}."
        return Finding(
            "code", "violation", sentence, run_labels(runs), {f: sorted(found) for f, found in changed.items()}
        )
    if part := _other_part(runs):
        return part
    states = by_value([run for run in runs if code_state(run) is not None], code_state)
    if len(states) > 1:
        text = "; ".join(f"{str(state)[:10]}: {run_names(group)}" for state, group in states.items())
        sentence = f"The code of hf_arch changed between runs: {text}."
        return Finding("code", "violation", sentence, run_labels(runs), values_by_run(states))
    settings = by_value(
        [run for run in runs if run.completed],
        lambda run: repr(sorted(_not_measured(run).items())),
    )
    if len(settings) > 1:
        text = "; ".join(f"{value}: {run_names(group)}" for value, group in settings.items())
        sentence = f"Environment variables or settings of torch differ: {text}."
        values = {run.label: _not_measured(run) for group in settings.values() for run in group}
        return Finding("code", "violation", sentence, run_labels(runs), values)
    named = [run for run in runs if (run.config.get("model") or {}).get("plugins") and not _plugins(run)]
    if named:
        return not_recorded("code", "the hash of a plugin", named)
    return Finding(
        "code", "ok", "Same code.", run_labels(runs), {file: next(iter(found)) for file, found in plugins.items()}
    )


def _not_measured(run: RunRecord) -> dict[str, Any]:
    """Variables and settings of a run, but for those whose effect is recorded."""
    settings = run.provenance.get("environment") or {}
    return {name: value for name, value in settings.items() if getattr(run, MEASURED.get(name, ""), None) is None}


def _other_part(runs: Sequence[RunRecord]) -> Finding | None:
    """A finding where one name is two things: parts of plugins whose files are called differently."""
    parts: dict[str, dict[str, list[RunRecord]]] = {}
    for run in runs:
        for part, code in (run.provenance.get("plugin_parts") or {}).items():
            parts.setdefault(part, {}).setdefault(str(code), []).append(run)
    for part, found in parts.items():
        if len(found) > 1:
            text = "; ".join(f"{code[:10]}: {run_names(group)}" for code, group in found.items())
            sentence = f"Code of the {part!r} differs between runs: {text}."
            return Finding("code", "violation", sentence, run_labels(runs), {part: values_by_run(found)})
    return None


def check_metrics(runs: Sequence[RunRecord]) -> Finding | None:
    """A number of a plugin is one thing in every run: its unit, and which direction is better."""
    meanings: dict[str, dict[str, list[RunRecord]]] = {}
    for run in runs:
        for key, facts in run.plugin_metrics.items():
            number = read_number(key, facts)
            better = "higher" if number.higher_is_better else "lower"
            meaning = f"{number.label}, {better} is better"
            meanings.setdefault(key, {}).setdefault(meaning, []).append(run)
    for key, found in meanings.items():
        if len(found) > 1:
            text = "; ".join(f"{meaning}: {run_names(group)}" for meaning, group in found.items())
            sentence = f"The number {key} is not one thing: {text}."
            return Finding("metric", "violation", sentence, run_labels(runs), {key: values_by_run(found)})
    return None


def check_consistent(runs: Sequence[RunRecord]) -> Finding | None:
    """Numbers of one run that follow from each other: where they do not in some runs, these were changed by hand."""
    completed = [run for run in runs if run.completed]
    ratios = by_value(completed, lambda run: (run.data_fingerprint, run.numbers.get("val_tokens")))
    usual = {
        run: float(np.median(found))
        for group in ratios.values()
        if len(found := [ratio for run in group if (ratio := _bits_a_nat(run)) is not None]) > 2
        for run in group
    }
    wrong = {run: words for run in completed if (words := _contradiction(run, usual.get(run)))}
    if not wrong:
        return None
    text = "; ".join(f"{run.label}: {words}" for run, words in wrong.items())
    severity: Severity = "note" if len(wrong) == len(completed) else "violation"
    sentence = f"Numbers of results.json contradict each other, as where they are changed by hand: {text}."
    return Finding("consistent", severity, sentence, run_labels(wrong), {r.label: words for r, words in wrong.items()})


def _bits_a_nat(run: RunRecord) -> float | None:
    bits, loss = run.numbers.get("bits_per_byte"), run.numbers["final_val_loss"]
    return bits / loss if bits is not None and loss > 0 else None


def _contradiction(run: RunRecord, bits_a_nat: float | None) -> str:
    """What of a run cannot be, in words; empty where nothing is."""
    loss, perplexity = run.numbers["final_val_loss"], run.numbers.get("final_val_perplexity")
    if perplexity is not None and loss < LARGEST_LOSS and not math.isclose(math.exp(loss), perplexity, rel_tol=ALIKE):
        return f"a loss of {loss:.4g} is a perplexity of {math.exp(loss):.4g}, not {perplexity:.4g}"
    ratio = _bits_a_nat(run)
    if ratio is not None and bits_a_nat is not None and not math.isclose(ratio, bits_a_nat, rel_tol=ALIKE):
        return f"a loss of {loss:.4g} is {loss * bits_a_nat:.4g} bits a byte of this text, not {ratio * loss:.4g}"
    best, accuracy = run.numbers.get("best_accuracy"), run.numbers.get("accuracy")
    if best is not None and accuracy is not None and accuracy > best + ALIKE:
        return f"an accuracy of {accuracy:.4g} is above the best one, {best:.4g}"
    rows, tokens = run.experiment.get("global_batch_size"), run.numbers.get("tokens_seen")
    if run.steps and rows and run.sequence_length and tokens is not None:
        expected = run.steps * rows * run.sequence_length
        if not math.isclose(expected, tokens, rel_tol=ALIKE):
            return f"{run.steps:.0f} steps are {expected:,.0f} tokens, not {tokens:,.0f}"
    return ""


def check_utilisation(runs: Sequence[RunRecord]) -> Finding | None:
    """A model-FLOPs utilisation above 1 means that the FLOPs, the clock or the peak are wrong."""
    impossible = [run for run in runs if run.numbers.get("mfu", 0.0) > 1.0]
    if not impossible:
        return None
    text = ", ".join(f"{run.label} {run.numbers['mfu']:.0%}" for run in impossible)
    values = {run.label: run.numbers["mfu"] for run in impossible}
    return Finding("utilisation", "violation", f"MFU above 100 % cannot be: {text}.", run_labels(impossible), values)


def _has(run: RunRecord, key: str) -> bool:
    section, _, name = key.rpartition(".")
    holder = {"provenance": run.provenance, "run": run.experiment}.get(section)
    return (getattr(run, key) if holder is None else holder.get(name)) is not None


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


def _labels(runs: Sequence[RunRecord]) -> str:
    return ", ".join(distinct(run.label for run in runs))


def _changes(run: RunRecord) -> tuple[str, ...]:
    """What of the changes of a run can move its loss: not how many processes or threads computed it."""
    changes = [change for change in run.changes or () if isinstance(change, Mapping)]
    return tuple(
        f"{change.get('key')} from {change.get('begun')} to {change.get('now')} at step {change.get('step')}"
        for change in changes
        if not re.fullmatch(SPEED_ONLY, str(change.get("key")))
    )


def _begun(run: RunRecord) -> str:
    """From which weights a run began: its own, or those of another run (`hf_arch.training.trunk`)."""
    branch = run.experiment.get("branch")
    return f"at step {branch.get('step')} of another run" if isinstance(branch, Mapping) else "at step 0"


def _own_version(run: RunRecord) -> dict[str, Any]:
    """What of our own version changes numbers; where that was not recorded, the version itself."""
    numerics = numerics_version(run.provenance)
    return {"hf_arch": run.provenance.get("hf_arch")} if numerics is None else {"numerics of hf_arch": numerics}


def _plugins(run: RunRecord) -> Mapping[str, Any]:
    found = run.provenance.get("plugins")
    return found if isinstance(found, Mapping) else {}
