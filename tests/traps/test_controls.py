"""Traps in the controls: what they leave is said with what still separates them, and one that is missing is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.comparison import Comparison
from hf_arch.report.page import render
from tests.experiments.synthetic import write_run
from tests.report.text import comparison_text
from tests.traps.test_planted import scaled

RUN_OF_A_CONTROL = {"question": ["model.architecture", "model.branch_scales"]}
CLAIM = "gla better than llama"
STAGE = {
    "pair": ["gla", "llama"],
    "removes": ["branch scale"],
    "runs": ["gla+branch_scale", "llama"],
    "words": "scaled",
}


def edit_config(folder: Path, **sections: dict[str, Any]) -> None:
    file = folder / "experiment_config.json"
    config = json.loads(file.read_text())
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values}
    file.write_text(json.dumps(config))


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
    assert control.confounds == () and "] of it remains once scaled" in control.sentence
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


def seeds_of(root: Path, name: str, loss: float, seeds: tuple[int, ...] = (1, 2, 3), **spoilt: Any) -> None:
    for seed in seeds:
        write_run(root, name, seed, loss=loss + seed**2 / 1000 / len(name), hypothesis=CLAIM, **spoilt)


SWEPT = {"grid": [1e-3, 3e-3], "chosen": 1e-3, "at_edge": True, "selection_rows": "even", "claim_rows": "odd"}
HALF = {"short_convolution": {"layers": [0, 1]}}
NO_CONTROL_FOR = {
    "a seed that one side lacks": ({"seeds": (1, 2)}, {}),
    "versions": ({"results": {"provenance": {"versions": {"torch": "1"}}}}, {}),
    "a rate at the edge of its grid": ({"config": {"run": {"learning_rates": SWEPT}}}, {}),
    "convolutions in other shares of the layers": (
        {"results": HALF},
        {"results": {"short_convolution": {"layers": [0, 1, 2, 3]}}},
    ),
    "ten times the state": ({"results": {"state_bytes": 2_000_000}}, {}),
}


@pytest.mark.parametrize("what", NO_CONTROL_FOR)
def test_no_command_is_offered_for_what_no_control_removes(what: str, tmp_path: Path) -> None:
    for (name, loss), spoilt in zip((("gla", 1.5), ("llama", 1.6)), NO_CONTROL_FOR[what], strict=True):
        seeds_of(tmp_path, name, loss, **spoilt)
    comparison = compare_runs(tmp_path)
    assert comparison.verdicts[0].outcome == "confounded"
    assert comparison.controls_command is None and comparison.controls_remove == ()


def test_the_command_says_which_of_several_confounds_it_is_for(tmp_path: Path) -> None:
    seeds_of(tmp_path, "gla", 1.5, seeds=(1, 2), results=HALF)
    seeds_of(tmp_path, "llama", 1.6, config={"run": {"learning_rates": None}})
    comparison = compare_runs(tmp_path)
    assert {"seeds", "short convolution", "learning rate"} <= set(comparison.verdicts[0].confounds)
    assert comparison.controls_remove == ("short convolution",)
    said = "To remove what confounds the claims (short convolution): "
    assert said in comparison_text(comparison, 200) and said in render(comparison, "set")


@pytest.mark.parametrize(("command", "offered"), [("", None), ("hf-arch run a.yaml", "hf-arch run a.yaml --controls")])
def test_no_command_is_offered_for_the_runs_of_a_matrix(command: str, offered: str | None, tmp_path: Path) -> None:
    seeds_of(tmp_path, "gla", 1.5, results=HALF, config={"run": {"command": command}})
    seeds_of(tmp_path, "llama", 1.6, config={"run": {"command": command}})
    assert compare_runs(tmp_path).controls_command == offered


def test_no_command_is_offered_for_a_claim_about_one_run(tmp_path: Path) -> None:
    seeds_of(tmp_path, "gla", 1.5, results=HALF)
    seeds_of(tmp_path, "llama", 1.6)
    for file in tmp_path.glob("*/results.json"):
        file.write_text(file.read_text().replace(CLAIM, "gla at most 1.9"))
    for file in tmp_path.glob("*/experiment_config.json"):
        file.write_text(file.read_text().replace(CLAIM, "gla at most 1.9"))
    assert compare_runs(tmp_path).controls_command is None


def test_a_control_without_some_seeds_says_so(tmp_path: Path) -> None:
    [control] = study(tmp_path, seeds=(1, 2, 3)).controls
    assert control.confounds == ("seeds",)


def test_a_control_that_multiplies_a_branch_for_good_says_so(tmp_path: Path) -> None:
    """Equal at the start, and then each step of the optimiser changes a thousand times as much on one side."""
    for factor, still in ((1000.0, ("branch gain",)), (0.002, ("branch gain",)), (3.0, ())):
        root = tmp_path / f"{factor:g}"
        study(root)
        for folder in root.glob("gla+*"):
            edit_config(folder, model={"branch_scales": [[factor, 1.0]] * 4}, run=RUN_OF_A_CONTROL)
        [control] = compare_runs(root).controls
        assert control.confounds == still
        assert ("still apart in branch gain" in control.sentence) == bool(still)


@pytest.mark.parametrize(
    ("loss", "said"), [(1.59, "of it remains"), (1.3, "it grows to"), (1.75, "it is reversed, -0.15 [")]
)
def test_what_controls_leave_is_said_as_it_is(loss: float, said: str, tmp_path: Path) -> None:
    study(tmp_path)
    for folder in tmp_path.glob("gla+*"):
        results = json.loads((folder / "results.json").read_text())
        results["final_val_loss"] += loss - 1.59
        (folder / "results.json").write_text(json.dumps(results))
    comparison = compare_runs(tmp_path)
    [control] = comparison.controls
    assert said in control.sentence
    assert control.sentence in comparison.headline


def test_a_small_difference_has_the_digits_to_be_told_from_what_is_left(tmp_path: Path) -> None:
    """Of 0.0221 and 0.0238 two decimals make 0.02 and "it grows to 0.02"."""
    for seed in (1, 2, 3, 4):
        noise = seed / 100_000
        write_run(tmp_path, "gla", seed, loss=1.5 + noise, hypothesis=CLAIM, **scaled(0.004))
        write_run(tmp_path, "llama", seed, loss=1.5221, hypothesis=CLAIM)
        write_run(
            tmp_path,
            "gla+branch_scale",
            seed,
            loss=1.4983 + noise,
            hypothesis=CLAIM,
            results={"architecture": "gla"},
            config={"run": {"control": {"of": "gla", "stages": [STAGE]}}},
        )
    [control] = compare_runs(tmp_path).controls
    assert "0.022 nats between gla and llama; it grows to 0.024 [" in control.sentence


def test_controls_are_a_family_of_their_own_and_no_part_of_the_audit_of_the_set(tmp_path: Path) -> None:
    comparison = study(tmp_path, tokens_seen=2_000_000)
    assert comparison.families == {"claims": 1, "pairs": 1, "controls": 1}
    pair = comparison.pair("gla", "llama")
    assert pair is not None and pair.family == 1
    assert not any(finding.check == "tokens" and finding.severity == "violation" for finding in comparison.findings)
    assert any("12 runs" in finding.sentence for finding in comparison.findings if finding.check == "finished")
