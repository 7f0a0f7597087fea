"""The result of a comparison in one or two sentences."""

from __future__ import annotations

from collections.abc import Sequence

from hf_arch.analysis.columns import interval_text
from hf_arch.analysis.controls import Controlled
from hf_arch.analysis.measured import Measured
from hf_arch.analysis.run_names import either, together


def headline(measured: Measured, controls: Sequence[Controlled] = ()) -> str:
    """The result in one or two sentences; of a ladder, at its largest size and budget."""
    own = [group for group in measured.groups if group.name not in measured.control_names]
    if measured.ladder is not None:
        own = [group for group in own if group.name in measured.ladder.top]
    ranked = [group for group in own or measured.groups if group.counted]
    if not ranked:
        return "No run completed: there is nothing to compare."
    best = ranked[0]
    place = "" if measured.ladder is None else " at the largest size and budget"
    if next(group for group in measured.groups if group.counted).name in measured.control_names - {best.name}:
        place += " apart from controls"
    sentence = (
        f"{best.name} has the best {measured.metric_name}{place}, {interval_text(best.interval(measured.metric))}."
    )
    if len(ranked) == 1:
        return sentence
    others = [group.name for group in ranked[1:]]
    better = [name for name in others if (pair := measured.pair(best.name, name)) is None or pair.verdict == "better"]
    tied = [name for name in others if name not in better]
    pairs = [pair for name in others if (pair := measured.pair(best.name, name)) is not None]
    if pairs and all(len(pair.values) < 2 for pair in pairs):
        return f"{sentence} With fewer than two seeds in common, no difference can be tested."
    if not better:
        return f"{sentence} It is not significantly different from the others."
    words = "all others" if not tied else together(better)
    rest = f" It is not significantly different from {either(tied)}." if tied else ""
    reasons = {name: found for name in better if (found := measured.confounds(best.name, name))}
    if not reasons:
        return f"{sentence} It is significantly better than {words}.{rest}"
    checks = dict.fromkeys(finding.check for found in reasons.values() for finding in found)
    against = words if len(reasons) == len(better) else together(list(reasons))
    fair = [name for name in better if name not in reasons]
    fairly = f" It is significantly better than {together(fair)}." if fair else ""
    return (
        f"{sentence}{fairly} Its lead over {against} is confounded ({', '.join(checks)}): the audit gives other "
        f"reasons for it.{_with_controls(controls, best.name, list(reasons))}{rest}"
    )


def _with_controls(controls: Sequence[Controlled], best: str, others: Sequence[str]) -> str:
    """What the fairest control of each of these leads leaves of it, in sentences; empty without one."""
    sentences = ""
    for name in others:
        found = [c for c in controls if {c.before.first, c.before.second} == {best, name} and c.after.values]
        if found:
            fairest = min(found, key=lambda control: (len(control.confounds), -len(control.removes)))
            sentences += f" With controls: {fairest.sentence}."
    return sentences
