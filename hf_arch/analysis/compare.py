"""From runs to a comparison: groups of seeds by name, statistics against a baseline and over all pairs, the audit.

    from hf_arch.analysis.compare import compare_runs
    compare_runs("results/quickstart").headline

Runs of one name that differ only in the seed are one group; a name that folders give to different models or settings is
distinguished by the folder. Where a group tried several learning rates, the rate with the best mean is its row and the
others are its curve. Failed runs stay visible and enter no number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hf_arch.analysis.audit import audit_set
from hf_arch.analysis.budgets import pair_budgets
from hf_arch.analysis.comparison import Comparison
from hf_arch.analysis.controls import controlled_claims, controls_command, removable_confounds
from hf_arch.analysis.groups import Group, solved_at
from hf_arch.analysis.item_tests import item_tests
from hf_arch.analysis.ladder import ladder_of, rung_pairs
from hf_arch.analysis.ladder_audit import audit_by_rung
from hf_arch.analysis.measured import Measured, seed_plan
from hf_arch.analysis.scaling_laws import scaling_laws
from hf_arch.analysis.sequential import at_its_look
from hf_arch.analysis.stats import all_pairs, t_interval
from hf_arch.analysis.verdicts import judge
from hf_arch.core.errors import choice_error
from hf_arch.runs.columns import plugin_columns
from hf_arch.runs.numbers import Reader
from hf_arch.runs.record import RunRecord, definitions, numbers_for
from hf_arch.runs.registration import claims_made
from hf_arch.runs.run_settings import shared_settings
from hf_arch.runs.suite import load_runs

LOSS = "final_val_loss"
BASELINE_ARCHITECTURES = ("gpt2", "llama")


def compare_runs(
    source: str | Path | Sequence[str | Path | RunRecord], baseline: str | None = None, metric: str | None = None
) -> Comparison:
    """Reads, groups, tests and audits runs.

    `metric` is a measured number of results.json; by default that of the recipes' `experiment.metric`, else the
    validation loss, the accuracy of probes, or bits per byte where the tokenizers differ (a loss per token means
    nothing then). `baseline` is a group's name; by default the
    run that the recipe names or lists first. ConfigError for a name that does not exist.
    """
    runs = _with_distinct_names(load_runs(source))
    asked = list(dict.fromkeys(named for run in runs if (named := run.experiment.get("metric"))))
    claimed = str(asked[0]) if len(asked) == 1 else _default_metric(runs)
    metric = metric or claimed
    if metric not in (allowed := [number.key for number in numbers_for(Reader.ROWS, runs)]):
        raise choice_error("metric", metric, allowed)
    lower = not definitions(runs)[metric].higher_is_better
    names = list(dict.fromkeys(run.name for run in runs))
    groups = [_group(name, [run for run in runs if run.name == name], metric, lower) for name in names]
    sign = 1 if lower else -1
    groups.sort(key=lambda group: (not group.by_seed(metric), sign * (group.mean(metric) or 0.0)))
    if baseline is None:
        baseline = _default_baseline(runs, groups)
    elif baseline not in names:
        raise choice_error("baseline", baseline, names)
    controls = {run.name for run in runs if run.experiment.get("control")}
    values = {group.name: group.by_seed(metric) for group in groups}
    pairs = all_pairs(values, sign == 1, solved_at(runs, metric), apart=controls)
    if (plan := seed_plan(runs)) is not None:
        pairs = [at_its_look(plan, pair) for pair in pairs]
    ladder = ladder_of(groups, metric, baseline, sign == 1)
    if ladder is not None:
        baseline = ladder.named(ladder.rungs[0].base) or baseline
    measured = Measured(
        groups=tuple(groups),
        metric=metric,
        claimed_metric=claimed,
        baseline=baseline,
        pairs=tuple(pairs if ladder is None else rung_pairs(ladder)),
        findings=tuple(audit_set(runs) if ladder is None else audit_by_rung(runs)),
        ladder=ladder,
        claims=tuple(claims_made(runs)),
        plugin_columns=tuple(plugin_columns(runs)),
    )
    verdicts = tuple(judge(measured.claims, measured))
    removable = removable_confounds(measured, {verdict.claim: verdict.confounds for verdict in verdicts})
    return Comparison.of(
        measured,
        verdicts=verdicts,
        controls=tuple(controlled_claims(measured)),
        controls_command=controls_command(measured) if removable else None,
        controls_remove=removable,
        item_tests=tuple(item_tests(groups)),
        scaling=tuple(scaling_laws(groups, metric, sign == 1)),
        budgets=tuple(pair_budgets(measured)),
    )


def undecided_claims(comparison: Comparison) -> list[str]:
    """The claims in force that the numbers of their runs do not decide yet."""
    verdicts = comparison.verdicts
    return [v.claim for v in verdicts if v.statistics == "undecided" and v.registration.removed is None]


def _with_distinct_names(runs: list[RunRecord]) -> list[RunRecord]:
    """The runs, those of a name that means different things in several folders renamed to `folder/name`."""
    meanings: dict[str, set[str]] = {}
    folders: dict[str, set[Path]] = {}
    for run in runs:
        meanings.setdefault(run.name, set()).add(_meaning(run))
        folders.setdefault(run.name, set()).add(run.path.resolve().parent)
    ambiguous = {name for name in meanings if len(meanings[name]) > 1 and len(folders[name]) > 1}
    named = {folder.name for name in ambiguous for folder in folders[name]}
    told_by_name = len(named) == len({folder for name in ambiguous for folder in folders[name]})

    def renamed(run: RunRecord) -> RunRecord:
        folder = run.path.resolve().parent
        return run.renamed(f"{folder.name if told_by_name else folder}/{run.name}")

    return [renamed(run) if run.name in ambiguous else run for run in runs]


def _meaning(run: RunRecord) -> str:
    model = {key: value for key, value in (run.config.get("model") or {}).items() if key != "plugins"}
    return json.dumps([model, shared_settings(run)], sort_keys=True, default=str)


def _group(name: str, runs: list[RunRecord], metric: str, lower_is_better: bool) -> Group:
    """One group: a run a seed at each learning rate (the newest), then the rate with most seeds and the best mean."""
    by_rate: dict[float, dict[int, RunRecord]] = {}
    for run in sorted(runs, key=lambda run: run.modified):
        if run.completed and metric in run.numbers:
            by_rate.setdefault(run.learning_rate or 0.0, {})[run.seed or 0] = run
    sign = 1 if lower_is_better else -1
    rates = {
        rate: t_interval([run.numbers[metric] for run in seeds.values()]) for rate, seeds in sorted(by_rate.items())
    }
    if not rates:
        return Group(name, tuple(runs), ())
    best = min(rates, key=lambda rate: (-rates[rate].n, sign * rates[rate].mean))
    counted = tuple(run for _seed, run in sorted(by_rate[best].items()))
    return Group(name, tuple(runs), counted, rates)


def _default_metric(runs: list[RunRecord]) -> str:
    completed = [run for run in runs if run.completed]
    if completed and all("accuracy" in run.numbers for run in completed):
        return "accuracy"
    tokenizers = {run.tokenizer_fingerprint for run in completed}
    return "bits_per_byte" if len(tokenizers) > 1 and all("bits_per_byte" in run.numbers for run in completed) else LOSS


def _default_baseline(runs: list[RunRecord], groups: list[Group]) -> str | None:
    """The recipe's reference or first run, else the plainest architecture, else the first name with most seeds."""
    seeds = {group.name: len(group.counted) for group in groups}
    names = {name for name, count in seeds.items() if count}
    if len(names) < 2:
        return None
    for run in runs:
        match, declared = run.experiment.get("match"), run.experiment.get("runs")
        wanted = [run.experiment.get("baseline"), match.get("reference") if isinstance(match, dict) else None]
        wanted += list(declared) if isinstance(declared, dict) else []
        for name in wanted:
            for distinct in (name, f"{run.name.rpartition('/')[0]}/{name}"):
                if distinct in names:
                    return str(distinct)
    for architecture in BASELINE_ARCHITECTURES:
        for group in groups:
            if group.name in names and group.reference.architecture == architecture:
                return group.name
    return min(names, key=lambda name: (-seeds[name], name))
