"""Who changes the weights of a run with plugins, at which rates, and which are scored: the optimiser alone, at those of
the schedule, and the ones that it left; and whether a part takes what its cost says (`hf_arch.training.between_steps`,
`unseen_parts`, `counted_products`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hf_arch.analysis.audits.unseen import numbers_of, severity_of, values_of
from hf_arch.analysis.finding import Finding, Severity
from hf_arch.analysis.run_names import run_labels, run_names
from hf_arch.runs.record import RunRecord

SHARE = 0.01
"""Of all parameters."""
ALIKE = 2.0
"""Times the share of one side on the other: both do the same."""
OTHER_RATE = 1.01
"""Times the rate of the schedule."""
OVERSTATED = 1.1
"""Times what a row can be said to take, in a cost that says more."""
SCORES_MORE = 1.1
"""Times the products of a row in training mode, in evaluation mode: 1.0 in every architecture here."""


def _shares(runs: Sequence[RunRecord], fact: str, check: str, words: str) -> Finding | None:
    """A finding where a fact is more than `SHARE` of the parameters: a note where every side has as much of it, up to
    `ALIKE` times. `words` have places for {share} and {who}."""
    shares = numbers_of(runs, lambda run, facts: (facts.get(fact) or 0.0) / (run.numbers.get("params_total") or 1))
    many = [run for run, share in shares.items() if share > SHARE]
    if not many:
        return None
    # a question about sizes or losses is none about parameters that never learn, or losses that nothing records
    severity: Severity = severity_of(check, runs) if check == "optimiser" else "violation"
    if min(shares.values()) > max(SHARE, max(shares.values()) / ALIKE):
        severity = "note"
    sentence = words.format(share=f"{max(shares.values()):.0%}", who=run_names(many))
    return Finding(check, severity, sentence, run_labels(many), values_of(shares))


check_scored_weights = partial(
    _shares,
    fact="swapped",
    check="scoring",
    words="Weights that training did not end with are scored: {share} of the parameters in {who}.",
)
"""The weights that are scored are those that the last step left."""
check_between_steps = partial(
    _shares,
    fact="moved",
    check="optimiser",
    words="Weights change between the steps of the optimiser, {share} of the parameters in {who}.",
)
"""No step of a part's own, and no weights that are set anew, between the steps of the optimiser."""
check_memory = partial(
    _shares,
    fact="memory",
    check="optimiser",
    words="What the optimiser keeps of gradients changes between its steps, for {share} of the parameters in {who}.",
)
"""Moments are of the gradients that were: to set them anew is another optimiser."""
check_hidden_losses = partial(
    _shares,
    fact="forward_gradients",
    check="losses",
    words="Passes of {who} leave, add or change gradients of {share} of the parameters without the loss: those of a "
    "loss that is not recorded.",
)
"""Gradients that a pass leaves by itself are of a loss that nothing else knows."""
check_unmoved = partial(
    _shares,
    fact="unmoved",
    check="parameters",
    words="Training left {share} of the parameters in {who} as they began, so that fewer are compared than "
    "are counted.",
)
"""Parameters that never learn are counted, and matched by, as those that do."""
check_given_up = partial(
    _shares,
    fact="given_up",
    check="parameters",
    words="{share} of the parameters in {who} learned as training began and no longer at its end: frozen, or tied to "
    "others.",
)
"""As many parameters learn as are counted, to the end."""
check_saved = partial(
    _shares,
    fact="saved",
    check="scoring",
    words="The model that was saved is not the one that was scored: {share} of the parameters in {who} differ, so that "
    "later scores are of another.",
)
"""What is saved, and scored by `hf-arch eval`, is what the run was scored with."""


def check_rates(runs: Sequence[RunRecord]) -> Finding | None:
    """Steps at the rates of the schedule, and as many as are recorded."""
    rates = numbers_of(runs, lambda run, facts: facts.get("rates", 1.0))
    other = [run for run, factor in rates.items() if factor > OTHER_RATE]
    if other:
        sentence = (
            f"The optimiser of {run_names(other)} steps at up to {max(rates.values()):.3g} times the rate of its "
        )
        sentence += "schedule, or a part of it."
        return Finding("schedule", severity_of("schedule", runs), sentence, run_labels(other), values_of(rates))
    more = {run: steps for run in runs if run.completed and (steps := _steps_each(run)) > 1}
    if not more:
        return None
    sentence = f"The optimiser of {run_names(list(more))} took {max(more.values()):.3g} steps where one was due."
    return Finding("optimiser", severity_of("optimiser", runs), sentence, run_labels(more), values_of(more))


def _steps_each(run: RunRecord) -> float:
    """Steps that the optimiser counted, for each of the run."""
    counted, steps = (run.optimizer or {}).get("steps"), run.numbers.get("steps")
    return counted / steps if counted and steps else 1.0


def check_scoring_work(runs: Sequence[RunRecord]) -> Finding | None:
    """As much work on a row when it is scored as in training: several passes that are averaged are work that no
    training had."""
    ratios = numbers_of(runs, lambda run, facts: facts.get("scoring_products", 1.0))
    more = [run for run, ratio in ratios.items() if ratio > SCORES_MORE]
    if not more:
        return None
    sentence = (
        f"A row takes {max(ratios.values()):.2f} times the matrix products when it is scored that it takes in "
        f"training, in {run_names(more)}."
    )
    severity: Severity = "violation" if len(more) < len(ratios) else "note"
    return Finding("scoring", severity, sentence, run_labels(more), values_of(ratios))


def check_overstated(runs: Sequence[RunRecord]) -> Finding | None:
    """A cost that says more than is done makes the other side larger where FLOPs are matched."""
    work = numbers_of(runs, lambda run, facts: min(1.0, facts.get("most_work", 1.0)))
    over = [run for run, share in work.items() if share < 1 / OVERSTATED]
    if not over:
        return None
    sentence = (
        f"The cost of {run_names(over)} says {1 / min(work.values()):.2f} times the FLOPs that a row takes at most, "
        "elementwise work counted, so that equal FLOPs are not equal."
    )
    apart = max(work.values()) / min(work.values()) > OVERSTATED
    return Finding("flops", "violation" if apart else "note", sentence, run_labels(over), values_of(work))


def check_touched(runs: Sequence[RunRecord]) -> Finding | None:
    """A token passes through the parameters that a cost calls active, and no others."""
    ratios = numbers_of(runs, lambda run, facts: facts.get("touched") or 0.0)
    more = [run for run, ratio in ratios.items() if ratio > OVERSTATED]
    if not more:
        return None
    sentence = (
        f"A token passes through {max(ratios.values()):.2f} times the parameters that the cost of {run_names(more)} "
    )
    severity: Severity = "violation" if max(ratios.values()) > OVERSTATED * max(1.0, min(ratios.values())) else "note"
    return Finding("active parameters", severity, f"{sentence}calls active.", run_labels(more), values_of(ratios))


def check_held_state(runs: Sequence[RunRecord]) -> Finding | None:
    """A cache holds what a cost declares: state is matched, and compared, by that."""
    ratios = numbers_of(runs, lambda run, facts: facts.get("held_state") or 1.0)
    other = [run for run, ratio in ratios.items() if not 1 / OVERSTATED < ratio < OVERSTATED]
    if not other:
        return None
    most = max((ratios[run] for run in other), key=lambda ratio: max(ratio, 1 / ratio))
    sentence = (
        f"The cache of {run_names(other)} holds {most:.2f} times the bytes that its cost declares, so that equal "
    )
    apart = max(ratios.values()) / min(ratios.values()) > OVERSTATED
    severity: Severity = "violation" if apart else "note"
    return Finding("state", severity, f"{sentence}state is not equal.", run_labels(other), values_of(ratios))
