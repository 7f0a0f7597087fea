"""Planted traps: in each the numbers alone would decide the claim, and something else than the claim explains them.

None may be `supported` or `contradicted`, and the cause is named. Without the trap the claim is decided.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.experiments.synthetic import VERSIONS, write_run

SEEDS = (1, 2, 3, 4)


def judged(root: Path, first: dict[str, Any], second: dict[str, Any], names: tuple[str, str] = ("gla", "llama")) -> Any:
    """The verdict on a claim that the numbers decide: the first run is better by 0.1, which is 40 of its spreads."""
    for name, loss, given in ((names[0], 1.50, first), (names[1], 1.60, second)):
        for seed in SEEDS:
            changes = {key: value(seed) if callable(value) else value for key, value in given.items()}
            noise = random.Random(f"{name}-{seed}").gauss(0, 0.002)
            write_run(
                root, name, seed, hypothesis=f"{names[0]} better than {names[1]}", **{"loss": loss + noise, **changes}
            )
    comparison = compare_runs(root)
    [verdict] = comparison.verdicts
    return comparison, verdict


def test_without_a_trap_the_claim_is_decided(tmp_path: Path) -> None:
    comparison, verdict = judged(tmp_path, {}, {})
    assert verdict.outcome == "supported" and verdict.confounds == ()
    assert "significantly better than all others" in comparison.headline


def both(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return changes, changes


def scaled(scale: float) -> dict[str, Any]:
    return {"results": {"branch_scale": {"mixer": [scale] * 4, "ffn": [0.3] * 4}}}


def provenance(**changes: Any) -> dict[str, Any]:
    return {"results": {"provenance": {"versions": VERSIONS, "device": "cpu", "threads": 2, **changes}}}


def rates(**changes: Any) -> dict[str, Any]:
    sweep = {
        "grid": [3e-4, 1e-3, 3e-3],
        "chosen": 1e-3,
        "at_edge": False,
        "selection_rows": "even",
        "claim_rows": "odd",
    }
    return {"config": {"run": {"learning_rates": {**sweep, **changes}}}}


def training(**changes: Any) -> dict[str, Any]:
    return {"config": {"training": changes}}


def groups(*found: tuple[float, int], **facts: Any) -> dict[str, Any]:
    listed = [{"lr": 1e-3, "weight_decay": decay, "parameters": count} for decay, count in found]
    return {"results": {"optimizer": {"class": "AdamW", "groups": listed, **facts}}}


def wide(width: int, layers: int) -> dict[str, Any]:
    return {
        "config": {"run": {"config": {"hidden_size": width, "num_hidden_layers": layers}}},
        "results": {"branch_scale": {"mixer": [0.3] * layers, "ffn": [0.3] * layers}},
    }


def test_layers_without_feed_forwards_are_half_as_deep(tmp_path: Path) -> None:
    """Eight mixers alone are as deep as four with feed-forwards; so are four of both kinds."""
    alone = wide(128, 8)
    alone["results"]["branch_scale"]["ffn"] = [None] * 8
    for place, (first, second) in enumerate([(wide(128, 4), alone), (alone, wide(128, 8))]):
        _comparison, verdict = judged(tmp_path / str(place), first, second)
        assert "depth" not in verdict.confounds


NO_SWEEP = {"config": {"run": {"learning_rates": None}}}
TRAPS: dict[str, tuple[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "scaled init on one side": ("branch scale", (scaled(0.004), scaled(0.3))),
    "a branch that starts at zero": ("branch scale", (scaled(0.0), scaled(0.3))),
    "init changed by hand": ("initialisation", ({"results": {"init_overridden": True}}, {})),
    "a hidden convolution": ("short convolution", ({"results": {"short_convolution": {"layers": [1]}}}, {})),
    "an untuned rate": ("learning rate", (NO_SWEEP, NO_SWEEP)),
    "a rate at the edge": ("learning rate", (rates(at_edge=True, chosen=3e-3), {})),
    "another grid": ("learning rate", (rates(grid=[1e-4, 1e-3, 1e-2, 1e-1]), {})),
    "tuned on one side": ("learning rate", ({}, NO_SWEEP)),
    "a rate chosen on the claim's rows": ("learning rate", both(**rates(selection_rows="odd"))),
    "fewer tokens": ("tokens", ({}, {"results": {"tokens_seen": 400_000}})),
    "other data": ("data", ({}, {"results": {"data_fingerprint": "another"}})),
    "another order": ("order", ({}, {"results": {"order_fingerprint": "another"}})),
    "other plugin code": (
        "code",
        (provenance(plugins={"mine.py": "a" * 64}), provenance(plugins={"mine.py": "b" * 64})),
    ),
    "other package code": ("code", (provenance(source_sha256="a"), provenance(source_sha256="b"))),
    "another torch": ("versions", ({}, provenance(versions={**VERSIONS, "torch": "2.6.0"}))),
    "other rows": ("rows", ({"config": {"evaluation": {"final_sequences": 32}}}, {})),
    "other validation tokens": ("rows", ({"results": {"val_tokens": 4096}}, {"results": {"val_tokens": 65536}})),
    "five times the FLOPs": ("flops", ({"results": {"flops_per_token": 42_000_000}}, {})),
    "twenty times the state": ("state", ({"results": {"state_bytes": 3_000_000}}, {})),
    "a larger body": ("non-embedding parameters", ({}, {"results": {"params_embedding": 800_000}})),
    "fewer active parameters": ("active parameters", ({}, {"results": {"params_active": 400_000}})),
    "a narrow stream": ("width", (wide(256, 4), wide(64, 4))),
    "few layers": ("depth", (wide(256, 4), wide(256, 2))),
    "more parameters": ("parameters", ({"results": {"params_total": 1_400_000}}, {})),
    "another optimiser": ("optimiser", (training(optim="muon"), {})),
    "another weight decay": ("optimiser", (training(weight_decay=0.0), {})),
    "other groups": ("optimiser", (groups((0.1, 500_000), (0.0, 700_000)), groups((0.1, 1_200_000)))),
    "other code of an optimiser": (
        "optimiser",
        (groups((0.1, 1_200_000), code="0" * 16), groups((0.1, 1_200_000), code="1" * 16)),
    ),
    "another warm-up": ("schedule", (training(warmup_steps=50), {})),
    "another precision": ("precision", ({"results": {"precision": "bf16"}}, {})),
    "other kernels": ("kernels", ({"results": {"kernels": "fla"}}, {})),
    "other dropout": ("dropout", ({"results": {"components": {"mixer": "gla", "dropout": "residual 0.1"}}}, {})),
    "a tied head": ("tying", tuple({"config": {"run": {"config": {"tie_word_embeddings": t}}}} for t in (True, False))),
    "a longer batch": (
        "tokens",
        ({"results": {"tokens_seen": 1_638_400}, **training(gradient_accumulation_steps=2)}, {}),
    ),
    "rows of another length": ("settings", ({"config": {"data": {"sequence_length": 512}}}, {})),
    "a key that no run declares": ("one change", ({"config": {"model": {"norm_eps": 1e-3}}}, {})),
    "seeds of one order": ("seeds", both(results={"order_fingerprint": "one"})),
    "seeds of one start": ("seeds", both(results={"init_fingerprint": "one"})),
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_never_decided_and_its_cause_is_named(trap: str, tmp_path: Path) -> None:
    check, (first, second) = TRAPS[trap]
    comparison, verdict = judged(tmp_path, first, second)
    assert verdict.outcome == "confounded"
    assert check in verdict.confounds
    named = next(finding.sentence for finding in comparison.findings if finding.check == check)
    assert named.rstrip(".") in verdict.evidence
    assert "confounded" in comparison.headline and "significantly better than all" not in comparison.headline
    entry = comparison.to_dict()["hypotheses"][0]
    assert entry["outcome"] == "confounded" and check in entry["confounds"] and entry["evidence"]
    found = json.loads(json.dumps(comparison.to_dict()["audit"], allow_nan=False))
    assert [finding["check"] for finding in found if finding["severity"] == "violation" and not finding["values"]] == []


def rewrite_metrics(root: Path, rows: list[dict[str, Any]]) -> None:
    import json

    for path in root.glob("*/metrics.jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("check", "row"),
    [
        ("still learning", lambda step: {"loss": 4 - step / 100, "learning_rate": 1e-3 * (1 - step / 200)}),
        ("schedule", lambda step: {"loss": 1.5, "learning_rate": 1e-3}),
    ],
)
def test_a_run_that_had_not_ended_is_not_decided(check: str, row: Any, tmp_path: Path) -> None:
    judged(tmp_path, {}, {})
    rewrite_metrics(tmp_path, [{"step": step, **row(step)} for step in range(10, 210, 10)])
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome == "confounded" and check in verdict.confounds


def test_one_seed_is_undecided(tmp_path: Path) -> None:
    for name, loss in (("gla", 1.5), ("llama", 1.6)):
        write_run(tmp_path, name, 1, loss=loss, hypothesis="gla better than llama")
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome == "undecided"


def test_one_run_three_times_is_no_three_seeds(tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, {"loss": 1.5}, {})
    assert verdict.outcome != "supported" and "seeds" in verdict.confounds


def test_a_against_a_is_never_decided(tmp_path: Path) -> None:
    same = {"config": {"model": {"architecture": "gla"}}, "results": {"architecture": "gla"}}
    _, verdict = judged(tmp_path, same, same, names=("one", "other"))
    assert verdict.outcome == "confounded" and "one change" in verdict.confounds


def test_what_separates_others_does_not_touch_a_pair(tmp_path: Path) -> None:
    """A violation between A and C leaves a claim about A and B alone."""
    for seed in SEEDS:
        write_run(tmp_path, "gpt2", seed, loss=1.9, hypothesis="gla better than llama", results={"tokens_seen": 1})
    comparison, verdict = judged(tmp_path, {}, {})
    assert any(finding.check == "tokens" and finding.severity == "violation" for finding in comparison.findings)
    assert verdict.outcome == "supported" and verdict.confounds == ()


QUESTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("weight decay", training(weight_decay=0.0), {}),
    ("dropout", {"config": {"model": {"residual_dropout": 0.1}}, "results": {"components": {"dropout": "0.1"}}}, {}),
    (
        "convolution",
        {"config": {"model": {"use_short_conv": True}}, "results": {"short_convolution": {"layers": [0]}}},
        {},
    ),
    (
        "size",
        {"config": {"model": {"hidden_size": 256}}, "results": {"params_total": 4_000_000, "state_bytes": 900_000}},
        {},
    ),
]


@pytest.mark.parametrize(
    ("what", "first", "second"), QUESTIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_asked_is_no_confound_of_itself(
    what: str, first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    """One architecture, and the one key in which two runs differ is the question."""
    one = {"architecture": "gla"}
    question = {"run": {"question": ["model", "training"]}}

    def of_gla(given: dict[str, Any]) -> dict[str, Any]:
        config = given.get("config", {})
        config = {**config, **question, "model": {"architecture": "gla", **config.get("model", {})}}
        return {"config": config, "results": {**given.get("results", {}), **one}}

    _, verdict = judged(tmp_path, of_gla(first), of_gla(second), names=("with", "without"))
    assert verdict.outcome == "supported", (what, verdict.evidence)


def test_two_changes_at_once_ask_neither_question(tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, training(weight_decay=0.0), {})
    assert verdict.outcome == "confounded" and verdict.confounds[0] == "optimiser"


def test_vary_names_the_question(tmp_path: Path) -> None:
    """With `experiment.vary` what else runs change is named, and what it names is no confound."""
    given = {"run": {"vary": ["training.weight_decay", "model.architecture"], "question": []}}
    first = {"config": {**given, "training": {"weight_decay": 0.0}}}
    _, verdict = judged(tmp_path / "a", first, {"config": given})
    assert verdict.outcome == "supported"
    narrow = {"run": {"vary": ["model.architecture"], "question": []}}
    first = {"config": {**narrow, "model": {"architecture": "gla", "qk_norm": True}}}
    _, verdict = judged(tmp_path / "b", first, {"config": narrow})
    assert verdict.outcome == "confounded" and verdict.confounds == ("one change",)


def test_an_old_folder_without_the_measurements_says_so(tmp_path: Path) -> None:
    keys = ("branch_scale", "short_convolution", "optimizer", "kernels", "init_fingerprint")
    given = {"results": dict.fromkeys(keys)}
    comparison, _ = judged(tmp_path, given, given)
    finding = next(finding for finding in comparison.findings if finding.check == "branch scale")
    assert finding.severity == "note" and "not measured" in finding.sentence
