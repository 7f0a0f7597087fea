"""Traps that a critical reviewer would think of, and honest differences that are none.

Of each trap: the numbers alone would decide the claim, the verdict is neither supported nor contradicted, and its cause
is named. Of each honest difference: the claim is decided.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.runs.registration import register
from tests.experiments.synthetic import VERSIONS, curve, write_run
from tests.traps.test_planted import SEEDS, groups, judged, provenance, rates

Given = dict[str, Any]


def results(**values: Any) -> Given:
    return {"results": values}


def model(**values: Any) -> Given:
    """A key of the model that the recipe's `runs` set beside the architecture."""
    question = ["model.architecture", *(f"model.{key}" for key in values)]
    return {"config": {"model": values, "run": {"question": question}}}


def of(section: str, **values: Any) -> Given:
    question = ["model.architecture", *(f"{section}.{key}" for key in values)]
    return {"config": {section: values, "run": {"question": question}}}


def branch(mixer: list[float | None], ffn: list[float | None]) -> Given:
    return results(branch_scale={"mixer": mixer, "ffn": ffn})


def seeds_of(**values: Any) -> Given:
    """Results by the seed."""
    return {"results": lambda seed: {key: value(seed) for key, value in values.items()}}


TRAPS: dict[str, tuple[str, tuple[Given, Given]]] = {
    "one layer of four starts at nothing": ("branch scale", (branch([0.3, 0.3, 0.3, 0.0], [0.3] * 4), {})),
    "a feed-forward at ten times the scale": ("branch scale", (branch([0.3] * 4, [3.0] * 4), {})),
    "a branch multiplied by a hundred for good": ("branch gain", (model(branch_scales=[[100.0, 1.0]] * 4), {})),
    "a convolution in half of the layers": (
        "short convolution",
        (results(short_convolution={"layers": [0, 1]}), results(short_convolution={"layers": [0, 1, 2, 3]})),
    ),
    "a convolution of the other side's plugin": ("short convolution", ({}, results(short_convolution={"layers": [3]}))),
    "a rate at the lower edge": ("learning rate", ({}, rates(chosen=3e-4, at_edge=True))),
    "a finer grid on one side": ("learning rate", (rates(grid=[3e-4, 5e-4, 1e-3, 2e-3, 3e-3]), {})),
    "rates chosen on all rows": ("learning rate", (rates(claim_rows="all"), {})),
    "another rate than the one that was chosen": ("learning rate", ({"learning_rate": 2e-3, **rates(chosen=1e-3)}, {})),
    "a fifth more tokens": ("tokens", (results(tokens_seen=983_040), {})),
    "one seed with fewer tokens": ("tokens", (seeds_of(tokens_seen=lambda s: 819_200 if s != 2 else 700_000), {})),
    "plugin code edited between the seeds": (
        "code",
        (
            seeds_of(
                provenance=lambda s: {
                    "versions": VERSIONS,
                    "device": "cpu",
                    "threads": 2,
                    "plugins": {"m.py": "ab"[s > 2] * 64},
                }
            ),
            provenance(plugins={"m.py": "a" * 64}),
        ),
    ),
    "a helper file of one plugin": (
        "code",
        (provenance(plugins={"m.py": "a" * 64, "h.py": "c" * 64}), provenance(plugins={"m.py": "b" * 64})),
    ),
    "rows of the claim on one side": ("rows", (of("evaluation", rows="claim"), {})),
    "a third of the rows": ("rows", (results(val_tokens=21_845), results(val_tokens=65_536))),
    "seven times the FLOPs": ("flops", (results(flops_per_token=60_000_000), {})),
    "fifteen times the state": ("state", ({}, results(state_bytes=1_000_000))),
    "groups at another rate": (
        "optimiser",
        (
            results(
                optimizer={
                    "class": "AdamW",
                    "groups": [
                        {"lr": 1e-3, "weight_decay": 0.1, "parameters": 600_000},
                        {"lr": 1e-2, "weight_decay": 0.1, "parameters": 600_000},
                    ],
                }
            ),
            groups((0.1, 1_200_000)),
        ),
    ),
    "decay of norms on one side": (
        "optimiser",
        (groups((0.0, 300_000), (0.1, 900_000)), groups((0.1, 1_200_000))),
    ),
    "another epsilon of Adam": ("optimiser", (of("training", adam_epsilon=1e-3), {})),
    "seeds of one order on one side": ("seeds", (results(order_fingerprint="one"), {})),
    "seeds of one start on one side": ("seeds", (results(init_fingerprint="one"), {})),
    "another vocabulary at equal size": ("tokenizer", (results(tokenizer_fingerprint="u" * 16), {})),
    "longer contexts in evaluation": ("settings", (of("data", block_size=512), {})),
    "gradients of one side clipped": ("optimiser", (of("training", max_grad_norm=0.05), {})),
    "weights averaged on one side": ("settings", (of("training", average_checkpoints=4), {})),
    "dropout of the residual": ("dropout", (results(components={"mixer": "gla", "dropout": "residual 0.2"}), {})),
    "half of the seeds in bf16": ("precision", (seeds_of(precision=lambda s: "bf16" if s > 2 else "fp32"), {})),
    "kernels of one seed": (
        "kernels",
        (seeds_of(kernels=lambda s: "fla" if s == 1 else "torch"), results(kernels="torch")),
    ),
    "a policy of initialisation on one side": ("initialisation", (model(init={"type": "mup"}), {})),
    "another parametrization": ("initialisation", (model(parametrization={"type": "mup", "base_width": 64}), {})),
    "position encoding beside the mixer": ("one change", ({"config": {"model": {"position": "rope"}}}, {})),
    "a norm beside the mixer": ("one change", ({"config": {"model": {"norm": "layernorm"}}}, {})),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_never_decided(trap: str, tmp_path: Path) -> None:
    check, (first, second) = TRAPS[trap]
    comparison, verdict = judged(tmp_path, first, second)
    assert verdict.outcome not in ("supported", "contradicted"), verdict.evidence
    assert check in verdict.confounds, verdict.confounds
    assert "significantly better than all" not in comparison.headline


HONEST: dict[str, tuple[Given, Given]] = {
    "nothing": ({}, {}),
    "branches within a factor of two": (branch([0.3] * 4, [0.3] * 4), branch([0.55] * 4, [0.25] * 4)),
    "another depth, the same scales": (branch([0.3] * 4, [0.3] * 4), branch([0.3] * 8, [0.3] * 8)),
    "convolutions on both sides": tuple([results(short_convolution={"layers": [0, 1, 2, 3]})] * 2),  # type: ignore[dict-item]
    "each at its own best rate": (
        {"learning_rate": 1e-3, **rates(chosen=1e-3, grid=[3e-4, 1e-3, 3e-3, 9e-3])},
        {"learning_rate": 3e-3, **rates(chosen=3e-3, grid=[3e-4, 1e-3, 3e-3, 9e-3])},
    ),
    "half as many FLOPs again": (results(flops_per_token=11_000_000), {}),
    "a quarter of the state": (results(state_bytes=32_768), results(state_bytes=131_072)),
    "half a per cent of the parameters": (results(params_total=1_205_000), results(params_total=1_200_000)),
    "a plugin on one side alone": (provenance(plugins={"mine.py": "a" * 64}), provenance()),
    "the same plugin": tuple([provenance(plugins={"mine.py": "a" * 64})] * 2),  # type: ignore[dict-item]
    "another speed and memory": (results(train_tokens_per_second=2600.0, peak_memory_bytes=2_000_000_000), {}),
    "another machine": (provenance(device="H100", threads=8), provenance()),
    "decayed groups that the shape of the model makes": (
        groups((0.1, 1_190_000), (0.0, 11_000)),
        groups((0.1, 1_160_000), (0.0, 40_000)),
    ),
    "its own default start": (results(components={"mixer": "gla", "init": "gla's own", "dropout": "residual 0"}), {}),
    "another gradient norm, clipped on neither": ({}, {}),
    "widths that matching changed": (
        {"config": {"model": {"intermediate_size": 300}, "run": {"match": {"by": "parameters", "reference": "llama"}}}},
        {"config": {"model": {"intermediate_size": 384}, "run": {"match": {"by": "parameters", "reference": "llama"}}}},
    ),
    "logging and saving": (
        {"config": {"training": {"logging_steps": 50, "save_steps": 10, "report_to": "wandb"}}},
        {},
    ),
    "other generated text": ({"config": {"evaluation": {"new_tokens": 64, "prompt": "x", "speed": False}}}, {}),
    "resumed with fewer threads": (
        results(changes=[{"step": 100, "key": "environment.threads", "begun": 4, "now": 2, "note": ""}]),
        {},
    ),
    "options of the architecture that is the question": (
        {
            "config": {
                "model": {"mixer": {"type": "gla", "expand_k": 0.5}},
                "run": {"question": ["model.architecture", "model.mixer.type", "model.mixer.expand_k"]},
            }
        },
        {"config": {"run": {"question": ["model.architecture", "model.mixer.type", "model.mixer.expand_k"]}}},
    ),
}


@pytest.mark.parametrize("difference", HONEST)
def test_an_honest_difference_is_decided(difference: str, tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, *HONEST[difference])
    assert verdict.outcome == "supported", (verdict.confounds, verdict.evidence)


def rewrite_metrics(root: Path, schedule: dict[str, Any], rates_of: Any) -> None:
    """Rows up to step 180 of 200, with these rates, and the schedule in the recipe."""
    for path in root.glob("*/metrics.jsonl"):
        loss = json.loads((path.parent / "results.json").read_text())["final_val_loss"]
        rows = [row for row in curve(loss) if row["step"] <= 180]
        for row in rows:
            if "learning_rate" in row:
                row["learning_rate"] = rates_of(row["step"])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = path.parent / "experiment_config.json"
        config = json.loads(file.read_text())
        config["training"] |= schedule
        file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("schedule", "outcome"),
    [
        ({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 16}}, "supported"),
        ({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 0}}, "confounded"),
        ({"lr_scheduler_type": "constant_with_warmup"}, "confounded"),
    ],
)
def test_a_decay_between_two_logged_steps_is_a_decay(schedule: dict[str, Any], outcome: str, tmp_path: Path) -> None:
    judged(tmp_path, {}, {})
    rewrite_metrics(tmp_path, schedule, lambda step: 1e-3)
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome == outcome, verdict.evidence
    assert (outcome == "supported") or verdict.confounds == ("schedule",)


def test_losses_of_one_seed_copied_under_other_seeds(tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, {"loss": 1.5}, {"loss": 1.6})
    assert verdict.outcome not in ("supported", "contradicted") and "seeds" in verdict.confounds


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ([[1, 2, 3, 4, 5, 6]], "confounded"),  # two of six are on no side
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4]], "supported"),  # fewer, before there was a result
        ([[1, 2, 3, 4]], "supported"),
    ],
)
def test_seeds_that_were_registered_and_are_nowhere(said: list[list[int]], outcome: str, tmp_path: Path) -> None:
    for seeds in said:
        register(tmp_path, "set", "gla better than llama", ["gla", "llama"], seeds)
    _, verdict = judged(tmp_path, {}, {})
    assert verdict.outcome == outcome, verdict.evidence
    if outcome == "confounded":
        assert verdict.confounds == ("dropped runs",) and "5, 6 have no result" in verdict.evidence
        register(tmp_path, "set", "gla better than llama", ["gla", "llama"], [1, 2, 3, 4])  # once results were seen
        assert compare_runs(tmp_path).verdicts[0].outcome == "confounded"


def test_seeds_that_one_side_lacks(tmp_path: Path) -> None:
    for seed in (*SEEDS, 5, 6):
        write_run(tmp_path, "gla", seed, loss=1.5 + seed / 900, hypothesis="gla better than llama")
        if seed != 3:
            write_run(tmp_path, "llama", seed, loss=1.6 + seed * seed / 4000, hypothesis="gla better than llama")
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome == "confounded" and "seeds" in verdict.confounds
