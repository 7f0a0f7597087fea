"""The fairness audit: what stands at the head of every table, in words.

Published rankings of architectures contradict each other because tokens, learning rates, initialisation, short
convolutions or parameter counts differ silently. Each check (`audits/`) looks at one of these and returns one
`Finding`:

    ok         looked at, and the same for every run
    note       worth knowing; the comparison stands
    violation  the comparison is not fair in this respect, or a number in it cannot be used

A check that lacks what it needs says so in a note. Nothing is left out, and nothing is repaired. A claim about two of
many runs is audited over these two alone (`confounds_of`): what separates others does not touch it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hf_arch.analysis.audits import (
    data,
    edits,
    machine,
    model,
    passes,
    plugins,
    rates,
    results,
    scores,
    sizes,
    spread,
    surroundings,
    tokenizer,
    training,
    unseen,
    weights,
)
from hf_arch.analysis.checks import SPEEDS, confounds
from hf_arch.analysis.finding import SEVERITIES, Finding
from hf_arch.analysis.question import asks_how
from hf_arch.runs.record import RunRecord

Check = Callable[[Sequence[RunRecord]], Finding | None]
CHECKS: tuple[Check, ...] = (
    results.check_finished,
    results.check_finite,
    results.check_changes,
    data.check_tokens,
    data.check_data,
    tokenizer.check_tokenizer,
    data.check_order,
    data.check_rows,
    data.check_given,
    data.check_seen,
    data.check_chosen_weights,
    rates.check_learning_rates,
    training.check_schedule,
    rates.check_followed,
    training.check_still_learning,
    sizes.check_parameters,
    sizes.check_matched_size,
    sizes.check_body,
    sizes.check_active,
    sizes.check_width,
    sizes.check_depth,
    sizes.check_flops,
    sizes.check_state,
    sizes.check_speed,
    model.check_scoring,
    model.check_short_convolution,
    model.check_branch_scale,
    model.check_branch_gain,
    model.check_init,
    training.check_embedding_scale,
    model.check_tying,
    model.check_dropout,
    training.check_optimiser,
    training.check_clipping,
    training.check_losses,
    training.check_precision,
    model.check_kernels,
    training.check_one_change,
    training.check_brought_along,
    training.check_settings,
    data.check_seeds,
    spread.check_spread,
    results.check_duplicates,
    results.check_recorded,
    results.check_consistent,
    edits.check_edited,
    results.check_versions,
    results.check_code,
    plugins.check_plugin_files,
    plugins.check_text_read,
    plugins.check_plugin_packages,
    unseen.check_replaced,
    surroundings.check_arguments,
    surroundings.check_process,
    surroundings.check_random_numbers,
    unseen.check_untracked,
    unseen.check_products,
    unseen.check_uncounted,
    unseen.check_gradients,
    unseen.check_gradient_hooks,
    unseen.check_types,
    unseen.check_starts,
    unseen.check_modes,
    unseen.check_outside,
    passes.check_product_types,
    passes.check_other_rows,
    passes.check_documents,
    weights.check_scored_weights,
    weights.check_between_steps,
    weights.check_memory,
    weights.check_hidden_losses,
    weights.check_unmoved,
    weights.check_given_up,
    weights.check_saved,
    weights.check_rates,
    weights.check_scoring_work,
    weights.check_overstated,
    weights.check_touched,
    weights.check_held_state,
    results.check_metrics,
    machine.check_devices,
    machine.check_load,
    machine.check_measured_speed,
    results.check_utilisation,
    scores.check_scores,
)
OF_CLAIMS = (*CHECKS, results.check_dropped)
"""The audit of a claim has one more: runs that did not complete are said once in the table, and may be why it holds."""

OF_HOW = ("timing", "one change")
"""What is found where runs compute the same numbers in another way and nothing else: of a speed it is the question."""


def audit(runs: Sequence[RunRecord], checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Every check over these runs; violations first, then notes, then what was found in order."""
    findings = [finding for check in checks if (finding := check(runs)) is not None]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def audit_set(runs: Sequence[RunRecord]) -> list[Finding]:
    """The audit of a set. Controls differ from its runs on purpose, and each is audited with the run that it is
    compared to (`analysis.controls`): of them only whether they completed is said here."""
    own = [run for run in runs if not run.experiment.get("control")]
    if not own or len(own) == len(runs):
        return audit(runs)
    findings = [finding for finding in audit(own) if finding.check != "finished"]
    return sorted([results.check_finished(runs), *findings], key=lambda found: SEVERITIES.index(found.severity))


def confounds_of(runs: Sequence[RunRecord], metric: str) -> list[Finding]:
    """What besides the claim may explain a difference in `metric` between these runs: the violations of an audit of
    them alone."""
    found = [*tokenizer.other_measure(runs, metric), *machine.uneven_load(runs, metric), *audit(runs, OF_CLAIMS)]
    asked = OF_HOW if metric in SPEEDS and asks_how(runs) else ()
    return [
        finding
        for finding in found
        if finding.severity == "violation" and confounds(finding.check, metric) and finding.check not in asked
    ]
