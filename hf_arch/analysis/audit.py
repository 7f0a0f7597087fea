"""The fairness audit: what stands at the head of every table, in words.

Published rankings of architectures contradict each other because tokens, learning rates, initialisation, short
convolutions or parameter counts differ in silence. Each check (`audits/`) looks at one of these and returns one
`Finding`:

    ok         looked at, and the same for every run
    note       worth knowing; the comparison stands
    violation  the comparison is not fair in this respect, or a number in it cannot be used

A check that lacks what it needs says so in a note. Nothing is left out, and nothing is repaired. A claim about two of
many runs is audited over these two alone (`confounds_of`): what separates others does not touch it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hf_arch.analysis.audits import data, model, results, sizes, training
from hf_arch.analysis.checks import confounds
from hf_arch.analysis.finding import SEVERITIES, Finding
from hf_arch.runs.record import RunRecord

CHECKS: tuple[Callable[[Sequence[RunRecord]], Finding | None], ...] = (
    results.check_finished,
    results.check_finite,
    data.check_tokens,
    data.check_data,
    data.check_tokenizer,
    data.check_order,
    data.check_rows,
    training.check_learning_rates,
    training.check_schedule,
    training.check_still_learning,
    sizes.check_parameters,
    sizes.check_matched_size,
    sizes.check_body,
    sizes.check_active,
    sizes.check_flops,
    sizes.check_state,
    model.check_short_convolution,
    model.check_branch_scale,
    model.check_init,
    model.check_tying,
    model.check_dropout,
    training.check_optimiser,
    training.check_precision,
    model.check_kernels,
    training.check_one_change,
    training.check_settings,
    data.check_seeds,
    results.check_duplicates,
    results.check_versions,
    results.check_code,
    results.check_devices,
    results.check_utilisation,
)


def audit(runs: Sequence[RunRecord]) -> list[Finding]:
    """Every check over these runs; violations first, then notes, then what was found in order."""
    findings = [finding for check in CHECKS if (finding := check(runs)) is not None]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def confounds_of(runs: Sequence[RunRecord], metric: str) -> list[Finding]:
    """What beside the claim may explain a difference in `metric` between these runs: the violations of an audit of
    them alone."""
    return [finding for finding in audit(runs) if finding.severity == "violation" and confounds(finding.check, metric)]
