"""Traps in the controls: what they leave is said with what still separates them, and one that is missing is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.comparison import Comparison
from tests.experiments.synthetic import write_run
from tests.traps.test_planted import scaled

CLAIM = "gla better than llama"
STAGE = {
    "pair": ["gla", "llama"],
    "removes": ["branch scale"],
    "runs": ["gla+branch_scale", "llama"],
    "words": "scaled",
}


def study(root: Path, seeds: tuple[int, ...] = (1, 2, 3, 4), **control: Any) -> Comparison:
    """A lead of 0.1 that is gone once the branches begin with the same scale; `control` spoils the control's runs."""
    for seed in (1, 2, 3, 4):
        noise = seed * seed / 2000
        write_run(root, "gla", seed, loss=1.5 + noise, hypothesis=CLAIM, **scaled(0.004))
        write_run(root, "llama", seed, loss=1.6 + seed / 2000, hypothesis=CLAIM)
    given = {
        "results": {"architecture": "gla", **control},
        "config": {"run": {"control": {"of": "gla", "stages": [STAGE]}}},
    }
    for seed in seeds:
        write_run(root, "gla+branch_scale", seed, loss=1.59 + seed * seed / 2000, hypothesis=CLAIM, **given)
    return compare_runs(root)


def test_a_fair_control_says_what_remains(tmp_path: Path) -> None:
    [control] = study(tmp_path).controls
    assert control.confounds == () and "] once scaled" in control.sentence
    assert "still" not in control.sentence


def test_a_control_with_another_budget_says_so(tmp_path: Path) -> None:
    [control] = study(tmp_path, tokens_seen=2_000_000).controls
    assert control.confounds == ("tokens",) and control.sentence.endswith("scaled; still apart in tokens")


def test_a_control_that_did_not_remove_what_it_names_says_so(tmp_path: Path) -> None:
    [control] = study(tmp_path, branch_scale={"mixer": [0.004] * 4, "ffn": [0.3] * 4}).controls
    assert control.confounds == ("branch scale",)
    assert study(tmp_path).to_dict()["controls"][0]["confounds"] == []


def test_controls_that_failed_are_named_with_the_command(tmp_path: Path) -> None:
    comparison = study(tmp_path, status="failed")
    [control] = comparison.controls
    assert "gla+branch_scale or llama did not complete" in control.sentence and "is not known" in control.sentence
    assert comparison.controls_command is not None and comparison.controls_command.endswith("--controls")
    assert comparison.to_dict()["controls"][0]["after"]["values"] == []


def test_a_control_without_some_seeds_says_so(tmp_path: Path) -> None:
    [control] = study(tmp_path, seeds=(1, 2, 3)).controls
    assert control.confounds == ("seeds",)
