"""The same numbers computed in another way on one side: a reason for other speeds and memory, and for no other loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.experiments.synthetic import write_run
from tests.traps.test_planted import SEEDS, judged
from tests.traps.test_sides import declared

HONEST: dict[str, dict[str, Any]] = {
    "activations computed again": {"gradient_checkpointing": True},
    "in another way": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "compiled in fp32": {"torch_compile": True, "torch_compile_mode": "default"},
    "scored more often": {"eval_steps": 10, "eval_on_start": True},
    "never scored on the way": {"eval_strategy": "no"},
    "caches emptied": {"torch_empty_cache_steps": 5},
}


@pytest.mark.parametrize("what", HONEST)
def test_a_loss_is_decided_and_a_speed_is_not(what: str, tmp_path: Path) -> None:
    comparison, verdict = judged(tmp_path, *declared("training", **HONEST[what]))
    assert verdict.outcome == "supported", (verdict.confounds, verdict.evidence)
    assert any(finding.check == "timing" and "another way" in finding.sentence for finding in comparison.findings)
    of_speed = compare_runs(tmp_path, metric="train_tokens_per_second").confounds("gla", "llama")
    assert [finding.check for finding in of_speed] == ["timing"]


TRAPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "compiled where bf16 rounds": ({"torch_compile": True}, {"results": {"precision": "bf16"}}),
    "other dropout when computed again": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"preserve_rng_state": False}},
        {},
    ),
    "more evaluations to choose from": ({"eval_steps": 10, "load_best_model_at_end": True}, {}),
    "a rate that follows the evaluations": (
        {"eval_steps": 10},
        {"config": {"training": {"lr_scheduler_type": "reduce_lr_on_plateau"}}},
    ),
    "more chances to have solved it": ({"eval_steps": 10}, {"config": {"probe": {"task": "mqar"}}}),
    "noise on embeddings": ({"neftune_noise_alpha": 5.0}, {}),
    "other kernels": ({"use_liger_kernel": True}, {}),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_where_it_may_move_a_loss_it_is_named(trap: str, tmp_path: Path) -> None:
    changes, shared = TRAPS[trap]
    first, second = ({**side, **shared} for side in declared("training", **changes))
    training = {**shared.get("config", {}).get("training", {})}
    first["config"] = {**shared.get("config", {}), "training": {**training, **changes}}
    _, verdict = judged(tmp_path, first, second)
    assert verdict.outcome == "confounded" and "settings" in verdict.confounds, verdict.evidence


@pytest.mark.parametrize("key", ["project", "log_level", "hub_model_id", "report_to", "eval_accumulation_steps"])
def test_bookkeeping_is_not_said(key: str, tmp_path: Path) -> None:
    comparison, verdict = judged(tmp_path, *declared("training", **{key: "other"}))
    assert verdict.outcome == "supported"
    assert not [found for found in comparison.findings if key in found.sentence]


@pytest.mark.parametrize("metric", ["train_tokens_per_second", "peak_memory_bytes"])
def test_of_a_speed_it_may_be_the_question(metric: str, tmp_path: Path) -> None:
    key = "training.gradient_checkpointing"
    for name, again in (("again", True), ("kept", False)):
        for seed in SEEDS:
            config = {"training": {"gradient_checkpointing": again}, "run": {"question": [key]}}
            one = {"architecture": "gla"}
            write_run(tmp_path, name, seed, config={"model": one, **config}, results=one)
    assert compare_runs(tmp_path, metric=metric).confounds("again", "kept") == []
    assert "one change" in {found.check for found in compare_runs(tmp_path).confounds("again", "kept")}
