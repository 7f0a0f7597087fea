"""What stood around the models in training, and was changed there (`hf_arch.training.surroundings`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_arch.analysis.finding import Finding, Severity
from hf_arch.analysis.run_names import by_name, by_value, listed, run_labels, run_names
from hf_arch.runs.record import RunRecord


def check_arguments(runs: Sequence[RunRecord]) -> Finding | None:
    """The arguments, and the settings of the optimiser, that a run began with, to its end."""
    changed = {run: _changed(run.unseen) for run in runs if run.completed and run.unseen}
    kinds = by_value(list(changed), lambda run: repr(sorted(changed[run].items())))
    if not any(changed.values()):
        return None
    texts = [f"{_text(changed[group[0]])}: {run_names(group)}" for group in kinds.values() if changed[group[0]]]
    severity: Severity = "violation" if len(kinds) > 1 else "note"
    sentence = f"Settings of training were changed while it ran, which no recipe tells: {'; '.join(texts)}."
    return Finding("settings", severity, sentence, run_labels(changed), {r.label: what for r, what in changed.items()})


def _changed(facts: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {**(facts.get("arguments") or {}), **(facts.get("settings") or {})}


def check_process(runs: Sequence[RunRecord]) -> Finding | None:
    """The same settings of torch, and nothing that sees every operation or runs beside the training, in each process
    while it trained."""
    known = {run: (run.unseen or {}).get("process") for run in runs if run.completed}
    seen = {run: found for run, found in known.items() if found is not None}
    if not any(seen.values()) or len(kinds := by_value(list(seen), lambda run: tuple(seen[run]))) < 2:
        return None
    text = "; ".join(f"{listed(found) or 'nothing'}: {run_names(group)}" for found, group in kinds.items())
    sentence = f"What holds for the whole process in training differs: {text}."
    return Finding("code", "violation", sentence, run_labels(seen), {r.label: list(what) for r, what in seen.items()})


def _text(changed: dict[str, list[object]]) -> str:
    return ", ".join(f"{name} {was} to {now}" for name, (was, now) in sorted(changed.items()))


def check_random_numbers(runs: Sequence[RunRecord]) -> Finding | None:
    """Seeds that end with the same random numbers were seeded on the way: dropout, and whatever else is drawn, is then
    the same under each."""
    for name, group in by_name([run for run in runs if run.completed and run.unseen]).items():
        states = {run: (run.unseen or {}).get("random_states") or {} for run in group}
        for generator in {kind for state in states.values() for kind in state}:
            for value, alike in by_value(group, lambda run: states[run].get(generator)).items():  # noqa: B023
                seeds = sorted({run.seed for run in alike if run.seed is not None})
                if value is not None and len(seeds) > 1:
                    sentence = (
                        f"Seeds are not independent: seeds {', '.join(map(str, seeds))} of {name} ended with the same "
                        f"random numbers of {generator}, so that they were seeded on the way."
                    )
                    return Finding(
                        "seeds", "violation", sentence, run_labels(alike), {"shared": generator, "seeds": seeds}
                    )
    return None
