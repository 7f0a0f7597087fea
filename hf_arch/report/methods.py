"""The methods paragraph, sentence by sentence, from what the runs recorded: nothing in it is typed by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_arch.core.formats import duration, quantity

if TYPE_CHECKING:
    from hf_arch.analysis.comparison import Comparison
    from hf_arch.runs.record import RunRecord

MATCHED = {"parameters": "parameters", "flops": "training FLOPs per token", "state": "bytes of cache or state"}


def methods(comparison: Comparison) -> list[str]:
    """Data, tokens, matching, optimisation, seeds, tests, corrections and hardware; [] where no run completed."""
    runs = [run for group in comparison.groups for run in group.counted]
    if not runs:
        return []
    sentences = [
        *_data(runs),
        *_tokens(runs),
        *_matching(comparison, runs),
        *_optimisation(runs),
        *_seeds(comparison),
        *_tests(comparison),
        *_hardware(runs),
    ]
    return [sentence for sentence in sentences if sentence]


def _data(runs: Sequence[RunRecord]) -> list[str]:
    probes = _distinct(run.config.get("probe") for run in runs if run.config.get("probe"))
    if probes:
        tasks = _listed(f"{probe.get('task')} (setting {probe.get('setting', 'cpu')})" for probe in probes)
        return [f"The models learn generated data: {tasks}."]
    data = _distinct(run.config.get("data") or {} for run in runs)
    if len(data) != 1:
        return [f"The runs use {len(data)} different data sections, which the appendix lists."]
    section = data[0]
    corpus = section.get("corpus") or section.get("name") or "unnamed text"
    if section.get("mixture"):
        corpus = "a mixture of " + _listed(f"{name} (weight {weight:g})" for name, weight in section["mixture"].items())
    words = [f"All models learn from {corpus}"]
    if tokenizer := section.get("tokenizer"):
        size = f" of {section['vocab_size']:,} entries" if tokenizer == "bpe" and section.get("vocab_size") else ""
        words.append(f", tokenised by {tokenizer}{size}")
    if length := section.get("sequence_length") or section.get("block_size"):
        words.append(f", in rows of {length:,} tokens")
    held_out = _range(runs, lambda run: run.numbers.get("val_tokens"), lambda value: f"{value:,.0f}")
    return ["".join(words) + "." + (f" The validation loss is over {held_out} held-out tokens." if held_out else "")]


def _tokens(runs: Sequence[RunRecord]) -> list[str]:
    tokens = _range(runs, lambda run: run.numbers.get("tokens_seen"), lambda value: f"{value:,.0f}")
    steps = _range(
        runs,
        lambda run: run.numbers.get("steps") or _number((run.config.get("training") or {}).get("max_steps")),
        lambda value: f"{value:,.0f}",
    )
    if not tokens:
        return []
    return [f"Each run sees {tokens} tokens" + (f" in {steps} optimiser steps." if steps else ".")]


def _matching(comparison: Comparison, runs: Sequence[RunRecord]) -> list[str]:
    sizes = _range(runs, lambda run: run.numbers.get("params_total"), quantity)
    if len(comparison.groups) < 2:
        return [f"The model has {sizes} parameters."] if sizes else []
    rules = _distinct(match for run in runs if isinstance(match := run.experiment.get("match"), Mapping))
    have = f" They have {sizes} parameters." if sizes else ""
    if len(rules) == 1 and all(run.experiment.get("match") for run in runs):
        rule = rules[0]
        return [
            f"The models were made equal in {MATCHED.get(str(rule.get('by')), rule.get('by'))} to "
            f"{rule.get('reference')}, within {rule.get('tolerance', 0.01):.1%}.{have}"
        ]
    return [f"The sizes of the models were not matched by the recipe.{have}"]


def _optimisation(runs: Sequence[RunRecord]) -> list[str]:
    classes = _distinct((run.optimizer or {}).get("class") for run in runs)
    training = [run.config.get("training") or {} for run in runs]
    rates = _range(runs, lambda run: run.learning_rate, lambda value: f"{value:.3g}")
    words = [f"Optimiser: {_listed(classes)}" if all(classes) else "Optimiser: as recorded in the appendix"]
    words += [f"learning rate {rates}"] if rates else []
    for key, name in (
        ("lr_scheduler_type", "schedule"),
        ("warmup_steps", "warm-up steps"),
        ("weight_decay", "weight decay"),
        ("max_grad_norm", "gradient clipping"),
        ("per_device_train_batch_size", "rows a batch and device"),
        ("gradient_accumulation_steps", "accumulation steps"),
    ):
        values = _distinct(section.get(key) for section in training if section.get(key) is not None)
        words += [f"{name} {_listed(values)}"] if values else []
    sentences = [", ".join(words) + "."]
    sweeps = [run.experiment.get("learning_rates") for run in runs]
    grids = _distinct(sweep.get("grid") for sweep in sweeps if isinstance(sweep, Mapping))
    if len(grids) == 1 and all(sweeps):
        rows = "on rows and seeds that the comparison does not use"
        sentences.append(f"Each learning rate was chosen among {_listed(f'{rate:g}' for rate in grids[0])}, {rows}.")
    return sentences


def _seeds(comparison: Comparison) -> list[str]:
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for group in comparison.groups:
        if group.counted:
            by_seeds.setdefault(tuple(sorted(run.seed or 0 for run in group.counted)), []).append(group.name)
    sentences = []
    for seeds, names in by_seeds.items():
        who = "Each model was" if len(by_seeds) == 1 else f"{_listed(names)} {'was' if len(names) == 1 else 'were'}"
        sentences.append(f"{who} trained with {len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({_listed(seeds)}).")
    failed = sum(group.failed for group in comparison.groups)
    if failed:
        sentences.append(
            f"{failed} run{'s' if failed > 1 else ''} did not complete and enter{'s' * (failed == 1)} no number."
        )
    return sentences


def _tests(comparison: Comparison) -> list[str]:
    if len([group for group in comparison.groups if group.counted]) < 2:
        return []
    if all(pair.p_value is None for pair in comparison.pairs):
        return ["No difference is tested: no two models have two seeds in common whose differences vary."]
    sentences = [
        f"Numbers are means over seeds with 95 % Student t intervals; models are compared in {comparison.metric_name} "
        "by their differences on common seeds, with a paired two-sided t-test at 5 %.",
        comparison.families_words,
        comparison.seeds_words,
    ]
    outcomes = Counter(verdict.outcome for verdict in comparison.verdicts)
    if outcomes and set(outcomes) != {"not judged"}:
        told = _listed(f"{count} {outcome}" for outcome, count in outcomes.items())
        sentences.append(f"Claims of the hypothesis: {told}.")
    if any(pair.counts is not None for pair in comparison.pairs):
        sentences.append("Where a seed solved the task, the seeds that did are counted, by Barnard's exact test.")
    violations = sum(finding.severity == "violation" for finding in comparison.findings)
    sentences.append(
        f"An audit of everything recorded about the runs found {violations or 'no'} "
        f"violation{'' if violations == 1 else 's'}; a claim that a violation could explain is called confounded."
    )
    if comparison.item_tests:
        sentences.append(
            "Scores of benchmarks are compared item by item, over seeds and items, by McNemar's exact test with one "
            "seed, corrected by Holm's method within a score."
        )
    return sentences


def _hardware(runs: Sequence[RunRecord]) -> list[str]:
    def machine(run: RunRecord) -> str | None:
        device, threads = run.provenance.get("device"), run.provenance.get("threads")
        words = "1 thread" if threads == 1 else f"{threads} threads"
        return None if device is None else f"{device} ({words})" if threads else str(device)

    machines = [found for found in _distinct(machine(run) for run in runs) if found]
    precisions = [found for found in _distinct(run.precision for run in runs) if found]
    seconds = sum(run.numbers.get("wall_seconds", 0.0) for run in runs)
    words = []
    if machines:
        words.append(
            f"The runs were made on {_listed(machines)}"
            + (f" in {_listed(precisions)}" if precisions else "")
            + (f" and took {duration(seconds)} together." if seconds else ".")
        )
    versions = _distinct(run.provenance.get("versions") or {} for run in runs)
    if len(versions) == 1 and versions[0]:
        words.append(f"Software: {_listed(f'{name} {version}' for name, version in versions[0].items())}.")
    return words


def _range(runs: Sequence[RunRecord], value: Callable[[RunRecord], float | None], show: Callable[[float], str]) -> str:
    """`show` of the one value that all have, or `lowest to highest`; empty where none has one."""
    values = [found for run in runs if (found := value(run)) is not None]
    if not values:
        return ""
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low} to {high}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else None


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order; values need not be hashable."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _listed(values: Iterable[Any]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else ""
