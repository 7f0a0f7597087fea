"""The machine that runs were timed on: devices, threads, processes, how speed was measured, and what else ran there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from hf_arch.analysis.audits.keys import with_values
from hf_arch.analysis.checks import SPEEDS
from hf_arch.analysis.finding import Finding, Severity, not_recorded
from hf_arch.analysis.question import computed_otherwise
from hf_arch.analysis.run_names import FEW, by_name, by_value, run_labels, run_names, shares_of, values_by_run
from hf_arch.runs.record import RunRecord

BUSY = 0.25
"""Other processes for each core: from so many on a machine is busy, and so much more on one side is unequal. This and
what follows was read off 321 runs of 59 models on a machine of 2 cores, 0.5 to 4.9 others for each
(`python -m tools.load_and_speed`): 5 % of the speed at 0.28."""
TAKEN = 0.1
"""Of the processor time of its one thread: so much that a run on the processor did not get is said."""
UNEVEN = 0.05
"""How much larger the share of processor time may be on one side. Log speed has a slope of 0.94 ± 0.05 on its log,
which explains 82 % of the spread within a model: 5 % of the share are 5 % of the speed."""
SHARED = 1.0
"""By how much the other processes for each core may differ where shares are known and every core is shared: what they
cost beside the share is 5 % at 1.07."""


def check_devices(runs: Sequence[RunRecord]) -> Finding:
    """Device, threads and processes: speed and memory compare only on the same ones."""
    measured = [run for run in runs if run.completed]
    machines = by_value(measured, _machine)
    if unknown := [run for run in measured if run.provenance.get("device") is None]:
        return not_recorded("device", "provenance.device", unknown)
    if len(machines) <= 1:
        return Finding("device", "ok", f"Same device: {next(iter(machines), None)}.", run_labels(measured))
    text = "; ".join(f"{machine}: {run_names(group)}" for machine, group in machines.items())
    sentence = f"Devices differ, so speeds and memory do not compare: {text}."
    return Finding("device", "violation", sentence, run_labels(measured), values_by_run(machines))


def check_load(runs: Sequence[RunRecord]) -> Finding | None:
    """What else ran on the machine, which changes speeds and nothing else: a note, and a violation where a claim is
    about a speed (`uneven_load`)."""
    found = _load(runs)
    return replace(found, severity="note") if found is not None and found.severity == "violation" else found


def uneven_load(runs: Sequence[RunRecord], metric: str) -> list[Finding]:
    """A violation where a speed is judged, and more ran on the machine next to some of the runs."""
    found = _load(runs) if metric in SPEEDS else None
    return [found] if found is not None and found.severity == "violation" else []


def _load(runs: Sequence[RunRecord]) -> Finding | None:
    """More of what else runs next to one side slows that side down."""
    known = by_name([run for run in runs if run.completed and run.machine_load])
    if not known:
        return None
    if missing := [run for run in runs if run.completed and not run.machine_load]:
        return not_recorded("load", "machine_load", missing)
    said: dict[Severity, str] = {}
    values: dict[str, dict[str, float]] = {}
    for key, value_of, busy, uneven, words in (
        ("others", _others, BUSY, _unequal_others, ("{:.2f}", "other processes for each core")),
        ("taken", _taken, TAKEN, _unequal_shares, ("{:.0%}", "of its processor time not had")),
    ):
        found = {name: share for name, group in known.items() if (share := _mean(group, value_of)) is not None}
        values[key] = found
        severity: Severity = "violation" if found and uneven(found.values(), known) else "note"
        if not found or (severity == "note" and max(found.values()) < busy):
            continue
        said.setdefault(severity, _shares(found, *words))
    if not said:
        return Finding("load", "ok", "Nothing else kept the machine busy.", run_labels(runs), values)
    if text := said.get("violation"):
        sentence = f"The machine was more busy next to some runs, so their speeds do not compare: {text}."
        return Finding("load", "violation", sentence, run_labels(runs), values)
    sentence = f"The machine was busy, so speeds are not those of an idle one: {said['note']}."
    return Finding("load", "note", sentence, run_labels(runs), values)


def _shares(found: Mapping[str, float], spelt: str, words: str) -> str:
    """`a 0.10 other processes for each core, b 2.40 other ...`; of many their range, and where its ends are."""
    text = shares_of(found, lambda name, share: f"{name} {spelt.format(share)} {words}", spelt)
    return text if len(found) <= FEW else f"from {text} {words}"


def _unequal_others(found: Collection[float], groups: Mapping[str, Sequence[RunRecord]]) -> bool:
    shares_known = all(_taken(run) is not None for group in groups.values() for run in group)
    if not shares_known:
        return max(found) - min(found) >= BUSY
    idle = [min(others, 1.0) for others in found]  # up to where every core is shared
    return max(idle) - min(idle) >= BUSY or max(found) - min(found) > SHARED


def _unequal_shares(found: Collection[float], groups: Mapping[str, Sequence[RunRecord]]) -> bool:
    return 1 - min(found) >= (1 + UNEVEN) * (1 - max(found))


def check_measured_speed(runs: Sequence[RunRecord]) -> Finding | None:
    """How speed and memory were measured: over the same number of tokens, in the same way."""
    if found := _computed_otherwise(runs):
        return found
    kinds = by_value([run for run in runs if run.completed and run.config], _speed_tokens)
    if len(kinds) < 2:
        tokens = next(iter(kinds), None)
        sentence = f"Generation was timed over {tokens} tokens by all."
        return Finding("timing", "ok", sentence, run_labels(runs)) if kinds else None
    text = "; ".join(f"{tokens} tokens: {run_names(group)}" for tokens, group in kinds.items())
    sentence = f"Generation was timed otherwise (evaluation.speed_tokens): {text}."
    return Finding("timing", "violation", sentence, run_labels(runs), values_by_run(kinds))


def _computed_otherwise(runs: Sequence[RunRecord]) -> Finding | None:
    """The same numbers in other batches, compiled, with activations computed again: not in the same time and memory."""
    if not (keys := computed_otherwise(runs)):
        return None
    text = ", ".join(with_values({run: {} for run in runs if run.config}, keys))
    sentence = f"The same numbers were computed in another way, so speeds and memory do not compare: {text}."
    return Finding("timing", "violation", sentence, run_labels(runs))


def unlike_machines(runs: Sequence[RunRecord]) -> str:
    """Why seconds of these runs do not compare, in words; empty where they do."""
    findings = [check_devices(runs), _load(runs), _computed_otherwise(runs)]
    return next((found.sentence.rstrip(".") for found in findings if found and found.severity == "violation"), "")


def _machine(run: RunRecord) -> str:
    threads, processes = run.provenance.get("threads"), (run.launch or {}).get("processes")
    text = f"{run.provenance.get('device')}"
    text += f", {threads} thread{'s' if threads != 1 else ''}" if threads else ""
    return text + (f", {processes} processes" if isinstance(processes, int) and processes > 1 else "")


def _speed_tokens(run: RunRecord) -> Any:
    return (run.config.get("evaluation") or {}).get("speed_tokens", 64)


def _mean(group: Sequence[RunRecord], value_of: Callable[[RunRecord], float | None]) -> float | None:
    values = [value for run in group if (value := value_of(run)) is not None]
    return fmean(values) if values else None


def _others(run: RunRecord) -> float | None:
    """Processes for each core that were not this run's threads: at its start or end, where there were more. A run's own
    are taken off at the start too, where they are those of the run before it."""
    load = run.machine_load or {}
    seen = [load[key] for key in ("start", "end") if load.get(key) is not None]
    return max(0.0, max(seen) - (load.get("threads") or 1)) / (load.get("cores") or 1) if seen else None


def _taken(run: RunRecord) -> float | None:
    """The share of its one thread's time that a run on the processor did not get. Of several threads some wait for
    others as the model has it, and one that drives a GPU waits for that."""
    load = run.machine_load or {}
    if load.get("threads") != 1 or load.get("processor_share") is None or (run.launch or {}).get("device") != "cpu":
        return None
    return max(0.0, 1.0 - load["processor_share"])
