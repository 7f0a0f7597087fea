"""What of a claimed difference is left once a confound is removed: a claim's pair next to the control runs for it.

`hf-arch run RECIPE --controls` trains these (`hf_arch.experiments.planning.controls`); each records the stages that it
is part of, under `run.control` of its experiment_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_arch.analysis.measured import Measured
from hf_arch.analysis.question import is_across_architectures
from hf_arch.analysis.stats import PairedDifference, paired_difference
from hf_arch.runs.claims import claim_matches
from hf_arch.runs.numbers import Number
from hf_arch.runs.record import RunRecord
from hf_arch.runs.run_settings import has_short_convolution


@dataclass(frozen=True)
class Controlled:
    """One claim with some confounds removed.

    removes: names of the audit's checks. runs: those that were compared instead, in the order of the claim.
    before, after: the differences `first - second` of the claim's own pair, and of `runs`; `after` is without values
        where these did not complete. confounds: the checks of the audit that still separate `runs`.
    """

    claim: str
    removes: tuple[str, ...]
    runs: tuple[str, str]
    before: PairedDifference
    after: PairedDifference
    sentence: str
    confounds: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "claim": self.claim,
            "removes": list(self.removes),
            "runs": list(self.runs),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "sentence": self.sentence,
            "confounds": list(self.confounds),
        }


def claimed_pairs(hypothesis: str, runs: Mapping[str, str]) -> list[tuple[str, str]]:
    """The pairs of runs that the claims of a hypothesis compare; `runs` are architectures by names of runs, and a claim
    may name an architecture that one run has."""
    pairs = []
    for match in claim_matches(hypothesis):
        first, second = (_run_called(match[side], runs) for side in ("first", "second"))
        if first is not None and second is not None and first != second:
            pairs.append((first, second))
    return list(dict.fromkeys(pairs))


def controlled_claims(measured: Measured) -> list[Controlled]:
    """Every claim at every stage of its controls that was trained, in the order of the stages."""
    groups = {group.name: group.reference.architecture for group in measured.groups}
    stages = sorted(_stages(measured), key=lambda stage: len(stage["removes"]))
    controls = measured.control_names
    originals = {name: architecture for name, architecture in groups.items() if name not in controls}
    found = []
    for made in measured.claims:
        for match in claim_matches(made.claim):
            first, second = (_run_called(match[side], originals) for side in ("first", "second"))
            if first is None or second is None:
                continue
            sides = (first, second)
            for stage in stages:
                if set(stage["pair"]) != set(sides):
                    continue
                runs = tuple(stage["runs"] if tuple(stage["pair"]) == sides else reversed(stage["runs"]))
                before, after = measured.pair(*sides), measured.pair(*runs)
                if before is None or before.difference is None:
                    continue
                if after is None or after.difference is None:
                    after = paired_difference(runs[0], runs[1], {}, {}, measured.lower_is_better)
                still = measured.confounding_checks(*runs) if after.values else ()
                sentence = _sentence(before, after, stage["words"], measured.number, still)
                found.append(Controlled(match[0], tuple(stage["removes"]), runs, before, after, sentence, still))
    return found


def controls_command(measured: Measured) -> str | None:
    """The command that trains the controls; None where they were trained to their end, of a ladder, and of a set whose
    runs a matrix makes (those record an empty command)."""
    controls = measured.control_names
    if measured.ladder is not None or (controls and all(measured.group(name).counted for name in controls)):
        return None
    commands = {run.experiment.get("command") for run in measured.runs}
    (command,) = commands if len(commands) == 1 else (None,)
    return None if command == "" else f"{command or 'hf-arch run RECIPE'} --controls"


def removable_confounds(measured: Measured, confounds: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Those of the confounds of claims ({claim: checks}) that controls are planned for: of a claim about two runs, and
    as the planning sees them, a short convolution on one side alone and a rate that nobody chose."""
    found: dict[str, None] = {}
    for claim, checks in confounds.items():
        for match in claim_matches(claim):
            groups = {group.name: group.reference.architecture for group in measured.groups}
            first, second = (_run_called(match[side], groups) for side in ("first", "second"))
            if first is not None and second is not None and first != second:
                sides = [measured.group(name).runs for name in (first, second)]
                found |= dict.fromkeys(check for check in checks if _is_removable(check, *sides))
    return tuple(found)


def _is_removable(check: str, first: Sequence[RunRecord], second: Sequence[RunRecord]) -> bool:
    both = [*first, *second]
    if check == "short convolution":
        return {has_short_convolution(run) for run in first} != {has_short_convolution(run) for run in second}
    if check == "learning rate":
        tried = any(run.experiment.get("learning_rates") or run.experiment.get("tune") for run in both)
        return not tried and len({run.learning_rate for run in both}) == 1 and is_across_architectures(both)
    return check in ("branch scale", "embedding scale", "flops")


def _stages(measured: Measured) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for run in measured.runs:
        control = run.experiment.get("control")
        for stage in control.get("stages", ()) if isinstance(control, Mapping) else ():
            found.setdefault(repr(stage), dict(stage))
    return list(found.values())


def _run_called(text: str, runs: Mapping[str, str]) -> str | None:
    if text in runs:
        return text
    having = [name for name, architecture in runs.items() if architecture == text]
    return having[0] if len(having) == 1 else None


def _sentence(
    before: PairedDifference, after: PairedDifference, words: str, number: Number, still: Sequence[str]
) -> str:
    assert before.difference is not None
    sign = -1.0 if before.difference.mean < 0 else 1.0
    unit = " nats" if number.unit.startswith("nats") else ""
    first = abs(before.difference.mean)
    decimals = 3 if first < 0.095 else 2  # so that 0.022 is told from 0.024
    apart = f"{first:.{decimals}f}{unit} between {before.first} and {before.second}"
    left = after.difference
    if left is None:
        return (
            f"{apart}; what of it remains once {words} is not known: {after.first} or {after.second} did not complete"
        )
    rest = f"; still apart in {', '.join(still)}" if still else ""
    mean, interval, sure = sign * left.mean, "", False
    if left.low is not None and left.high is not None:
        low, high = sorted((sign * left.low, sign * left.high))
        interval, sure = f" [{low:.{decimals}f}, {high:.{decimals}f}]", low > 0 or high < 0
    remains = f"{mean:.{decimals}f}{interval} of it remains"
    if sure and round(mean, decimals) > round(first, decimals):
        remains = f"it grows to {mean:.{decimals}f}{interval}"
    elif sure and mean < 0:
        remains = f"it is reversed, {mean:.{decimals}f}{interval},"
    return f"{apart}; {remains} once {words}{rest}"
