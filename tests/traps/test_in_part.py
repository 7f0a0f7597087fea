"""Traps in a part of one side: one seed, one layer, one fact that is not recorded. None of them is decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.experiments.synthetic import VERSIONS, write_run
from tests.report.text import comparison_text
from tests.traps.test_planted import judged, provenance, rates, scaled, training


def results(**values: Any) -> dict[str, Any]:
    return {"results": values}


TRAPS: dict[str, tuple[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "branch scale missing in one seed": (
        "branch scale",
        (
            {"results": lambda s: {"branch_scale": None if s == 4 else {"mixer": [0.004] * 4, "ffn": [0.3] * 4}}},
            scaled(0.3),
        ),
    ),
    "branch scale only in later seeds": (
        "branch scale",
        (
            {"results": lambda s: {"branch_scale": {"mixer": [0.3 if s == 1 else 0.004] * 4, "ffn": [0.3] * 4}}},
            scaled(0.3),
        ),
    ),
    "branch scale in the middle layer, other depth": (
        "branch scale",
        (results(branch_scale={"mixer": [0.3, 0.001, 0.3], "ffn": [0.3] * 3}), scaled(0.3)),
    ),
    "ffn only": ("branch scale", (results(branch_scale={"mixer": [0.3] * 4, "ffn": [0.01] * 4}), scaled(0.3))),
    "conv in one layer vs four": (
        "short convolution",
        (results(short_convolution={"layers": [0]}), results(short_convolution={"layers": [0, 1, 2, 3]})),
    ),
    "conv in one seed only": (
        "short convolution",
        ({"results": lambda s: {"short_convolution": {"layers": [0] if s > 1 else []}}}, {}),
    ),
    "flops in later seeds": (
        "flops",
        ({"results": lambda s: {"flops_per_token": 8_501_408 if s == 1 else 42_000_000}}, {}),
    ),
    "state exactly vs none": ("state", (results(state_bytes=3_000_000), results(state_bytes=0))),
    "parameters in later seeds": (
        "parameters",
        ({"results": lambda s: {"params_total": 1_201_408 if s == 1 else 1_500_000}}, {}),
    ),
    "tokenizer": ("tokenizer", ({}, results(tokenizer_fingerprint="z"))),
    "precision in one seed": ("precision", ({"results": lambda s: {"precision": "bf16" if s == 2 else "fp32"}}, {})),
    "max_grad_norm": ("optimiser", (training(max_grad_norm=0.1), {})),
    "betas": ("optimiser", (training(adam_beta2=0.99), {})),
    "cooldown": ("schedule", (training(lr_scheduler_type="constant"), {})),
    "label smoothing": ("settings", (training(label_smoothing_factor=0.1), {})),
    "neftune": ("settings", (training(neftune_noise_alpha=5), {})),
    "environment": ("code", (provenance(environment={"torch.float32_matmul_precision": "medium"}), provenance())),
    "git commit": ("code", (provenance(git_commit="a" * 16), provenance(git_commit="b" * 16))),
    "plugin on one seed of one side": (
        "code",
        (
            {
                "results": lambda s: {
                    "provenance": {
                        "versions": VERSIONS,
                        "device": "cpu",
                        "threads": 2,
                        "plugins": {"m.py": "a" if s < 3 else "b"},
                    }
                }
            },
            provenance(plugins={"m.py": "a"}),
        ),
    ),
    "eval batch rows": (
        "rows",
        ({"config": {"evaluation": {"rows": "even"}}}, {"config": {"evaluation": {"rows": "odd"}}}),
    ),
    "at_edge not marked": ("learning rate", (rates(chosen=3e-3), {})),
    "overlapping selection rows": ("learning rate", (rates(selection_rows="all"), rates(selection_rows="all"))),
    "selection rows unrecorded": ("learning rate", (rates(selection_rows=None, claim_rows="odd"), {})),
    "seeds chosen": (
        "seeds",
        ({"results": lambda s: {"order_fingerprint": "x" if s in (1, 2) else f"order-of-seed-{s}"}}, {}),
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_in_a_part_is_never_decided(trap: str, tmp_path: Path) -> None:
    check, (first, second) = TRAPS[trap]
    _, verdict = judged(tmp_path, first, second)
    assert verdict.outcome not in ("supported", "contradicted"), verdict.evidence
    assert check in verdict.confounds


@pytest.mark.parametrize("claim", ["gla at most 1.9", "gla within 0.2 of 1.5", "gla better than llama"])
def test_one_seed_decides_nothing(claim: str, tmp_path: Path) -> None:
    for name, loss in (("gla", 1.5), ("llama", 1.6)):
        write_run(tmp_path, name, 1, loss=loss, hypothesis=claim)
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.outcome == "undecided"


def test_table_rows_and_pairs_say_confounded(tmp_path: Path) -> None:
    comparison, _ = judged(tmp_path, scaled(0.004), scaled(0.3))
    assert "confounded (branch scale)" in comparison_text(comparison, 200)
    assert any("confounded" in row for row in comparison.frame()["versus_baseline"])
    [pair] = comparison.to_dict()["pairs"]
    assert pair["confounds"] == ["branch scale"]
