"""What of a claimed difference is left once a confound is removed: a claim's pair next to the control runs for it.

`hf-arch run RECIPE --controls` trains these (`hf_arch.experiments.planning.controls`); each records the stages that it
is part of, under `run.control` of its experiment_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_arch.analysis.stats import PairedDifference, paired_difference
from hf_arch.runs.claims import claim_matches
from hf_arch.runs.numbers import Number

if TYPE_CHECKING:
    from hf_arch.analysis.comparison import Comparison


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


def controlled_claims(comparison: Comparison) -> list[Controlled]:
    """Every claim of the comparison at every stage of its controls that was trained, in the order of the stages."""
    groups = {group.name: group.reference.architecture for group in comparison.groups}
    stages = sorted(_stages(comparison), key=lambda stage: len(stage["removes"]))
    controls = comparison.control_names
    originals = {name: architecture for name, architecture in groups.items() if name not in controls}
    found = []
    for made in comparison.claims:
        for match in claim_matches(made.claim):
            first, second = (_run_called(match[side], originals) for side in ("first", "second"))
            if first is None or second is None:
                continue
            sides = (first, second)
            for stage in stages:
                if set(stage["pair"]) != set(sides):
                    continue
                runs = tuple(stage["runs"] if tuple(stage["pair"]) == sides else reversed(stage["runs"]))
                before, after = comparison.pair(*sides), comparison.pair(*runs)
                if before is None or before.difference is None:
                    continue
                if after is None or after.difference is None:
                    after = paired_difference(runs[0], runs[1], {}, {}, comparison.lower_is_better)
                still = comparison.confounding_checks(*runs) if after.values else ()
                sentence = _sentence(before, after, stage["words"], comparison.number, still)
                found.append(Controlled(match[0], tuple(stage["removes"]), runs, before, after, sentence, still))
    return found


def controls_command(comparison: Comparison) -> str | None:
    """The command that trains the controls, where a claim was decided over a violation of the audit and no control was
    trained, or not to its end; None otherwise."""
    controls = comparison.control_names
    if comparison.ladder is not None or (controls and all(comparison.group(name).counted for name in controls)):
        return None
    if not any(verdict.confounds for verdict in comparison.verdicts):
        return None
    commands = {run.experiment.get("command") for run in comparison.runs}
    (command,) = commands if len(commands) == 1 else (None,)
    return f"{command or 'hf-arch run RECIPE'} --controls"


def _stages(comparison: Comparison) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for run in comparison.runs:
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
