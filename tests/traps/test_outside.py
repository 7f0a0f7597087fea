"""Traps outside the configuration: what a plugin does, what scoring does, how much was tuned, what a number means."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.traps.test_planted import judged, provenance, rates
from tests.traps.test_sides import edit, results

Given = dict[str, Any]


def number(value: float, **facts: Any) -> Given:
    return results(plugin_metrics={"mine": {"value": value, "words": "mine", "unit": "nats", **facts}})


def begins(loss: float) -> Given:
    return {"config": {"run": {"config": {"vocab_size": 512}}}, **results(initial_loss=loss)}


TRAPS: dict[str, tuple[str, tuple[Given, Given]]] = {
    "a model that sees ahead": ("scoring", (results(later_tokens=0.4), results(later_tokens=0.0))),
    "both sides see ahead": ("scoring", (results(later_tokens=0.4), results(later_tokens=0.4))),
    "a model that learns while it is scored": ("scoring", (results(scoring_drift=0.05), results(scoring_drift=0.0))),
    "one seed sees ahead": ("scoring", ({"results": lambda s: {"later_tokens": 0.4 if s == 3 else 0.0}}, {})),
    "weights that have learned": ("initialisation", (begins(2.1), begins(6.24))),
    "one seed with weights that have learned": (
        "initialisation",
        ({**begins(6.2), "results": lambda s: {"initial_loss": 2.1 if s == 2 else 6.2}}, begins(6.24)),
    ),
    "other bytes under one fingerprint": ("data", (results(text_fingerprint="a"), results(text_fingerprint="b"))),
    "rows that were trained on": ("seen rows", (results(seen_share=0.5, repeated_share=0.1),) * 2),
    "more seeds in one side's sweep": ("learning rate", (rates(seeds=[5, 6, 7]), rates(seeds=[5]))),
    "a part of one name from two files": (
        "code",
        (
            provenance(plugins={"a.py": "a" * 64}, plugin_parts={"metric mine": "a" * 16}),
            provenance(plugins={"b.py": "b" * 64}, plugin_parts={"metric mine": "b" * 16}),
        ),
    ),
    "matrix products in bf16 by a plugin": (
        "code",
        (provenance(environment={"torch.float32_matmul_precision": "medium"}), provenance()),
    ),
    "a number that is better the other way round": (
        "metric",
        (number(1.0, higher_is_better=True), number(2.0, higher_is_better=False)),
    ),
    "nats and bits": ("metric", (number(1.0), number(2.0, unit="bits"))),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_outside_the_configuration_is_never_decided(trap: str, tmp_path: Path) -> None:
    check, (first, second) = TRAPS[trap]
    comparison, verdict = judged(tmp_path, first, second)
    assert verdict.outcome == "confounded", verdict.evidence
    assert check in verdict.confounds
    assert "significantly better than all" not in comparison.headline


HONEST: dict[str, tuple[Given, Given]] = {
    "rounding that rests on later tokens": (results(later_tokens=2e-6, scoring_drift=0.0), results(later_tokens=0.0)),
    "looked at on one side alone": (results(later_tokens=0.0), {}),
    "a corpus that repeats itself": (results(seen_share=0.3, repeated_share=0.25),) * 2,
    "the same sweep": (rates(seeds=[5, 6]), rates(seeds=[5, 6])),
    "parts of two names": (
        provenance(plugins={"a.py": "a" * 64}, plugin_parts={"mixer a": "a" * 16}),
        provenance(plugins={"b.py": "b" * 64}, plugin_parts={"mixer b": "b" * 16}),
    ),
    "a start above a guess": (begins(9.5), begins(6.2)),
    "kernels asked for that ran anyway": (provenance(environment={"HF_ARCH_BACKEND": "torch"}), provenance()),
    "a precision asked for that ran anyway": (provenance(environment={"HF_ARCH_PRECISION": "fp32"}), provenance()),
    "both from weights that have learned": (begins(2.1), begins(2.2)),
    "one number": (number(1.0), number(2.0)),
}


@pytest.mark.parametrize("difference", HONEST)
def test_an_honest_difference_is_decided(difference: str, tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, *HONEST[difference])
    assert verdict.outcome == "supported", (verdict.confounds, verdict.evidence)


@pytest.mark.parametrize(
    "changed",
    [
        {"final_val_loss": 1.3},
        {"final_val_loss": 1.3, "final_val_perplexity": math.exp(1.3)},
        {"accuracy": 1.0, "best_accuracy": 0.6},
        {"tokens_seen": 819_200, "steps": 90, "sequence_length": 256},
    ],
)
def test_numbers_that_were_changed_by_hand_contradict_each_other(changed: dict[str, Any], tmp_path: Path) -> None:
    judged(tmp_path, *[{"config": {"run": {"global_batch_size": 16}}}] * 2)
    assert compare_runs(tmp_path).verdicts[0].outcome == "supported"
    edit(tmp_path, "gla", 2, **changed)
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome not in ("supported", "contradicted") and "consistent" in verdict.confounds


def test_weights_that_were_chosen_on_the_rows_of_the_score_are_named(tmp_path: Path) -> None:
    comparison, verdict = judged(tmp_path, *[{"config": {"training": {"load_best_model_at_end": True}}}] * 2)
    assert verdict.outcome == "supported"
    assert next(found for found in comparison.findings if found.check == "chosen weights").severity == "note"
