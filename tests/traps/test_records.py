"""What a comparison reads, changed or taken away afterwards: the configs of runs, digests, items, claims."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.report.page import render
from hf_arch.runs.digest import DIGESTS, VERSION, edited_config, facts_of_digest
from hf_arch.runs.record import write_end, write_results
from hf_arch.runs.registration import CLAIMS_FACT, claims_known, register
from tests.experiments.synthetic import write_run
from tests.report.text import comparison_text

SEEDS = (1, 2, 3, 4)
CLAIM = "gla better than llama"
Content = dict[str, Any]


def seal(folder: Path, **facts: Any) -> None:
    """Writes a run as one of this version does."""
    results, config = (json.loads((folder / name).read_text()) for name in ("results.json", "experiment_config.json"))
    config["run"] |= {DIGESTS: VERSION, **facts}
    (folder / "experiment_config.json").write_text(json.dumps(config))
    write_results(folder, results, config)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    register(tmp_path, "set", CLAIM, ["gla", "llama"], SEEDS)
    for name, loss in (("gla", 1.5), ("llama", 1.6)):
        for seed in SEEDS:
            folder = write_run(tmp_path, name, seed, loss=loss + 0.001 * seed * len(name), hypothesis=CLAIM)
            seal(folder, **{CLAIMS_FACT: claims_known(folder)})
    return tmp_path


def change(file: Path, how: Callable[[Content], Any]) -> None:
    content = json.loads(file.read_text())
    how(content)
    file.write_text(json.dumps(content))


def verdict(root: Path) -> Any:
    [found] = compare_runs(root).verdicts
    return found


def run_of(root: Path, name: str, seed: int) -> Path:
    return next(run.path for run in compare_runs(root).runs if (run.name, run.seed) == (name, seed))


def test_what_was_written_is_decided(runs: Path) -> None:
    found = verdict(runs)
    assert found.outcome == "supported" and found.registration.status == "before results"
    write_end(run_of(runs, "gla", 1), None, "completed", "completed")
    assert verdict(runs).outcome == "supported"


CONFIG_EDITS: dict[str, tuple[str, Callable[[Content], Any]]] = {
    "a rate that was at the edge": ("run.learning_rates", lambda c: c["run"]["learning_rates"].update(at_edge=True)),
    "a key that was another": ("training.weight_decay", lambda c: c["training"].update(weight_decay=0.2)),
    "the question": ("run.question", lambda c: c["run"].update(question=["model.architecture", "training.optim"])),
    "a key added": ("model.norm", lambda c: c["model"].update(norm="layernorm")),
    "a key taken out": ("model.hidden_size", lambda c: c["model"].pop("hidden_size")),
    "a baseline": ("run.baseline", lambda c: c["run"].update(baseline="gla")),
    "a section": ("evaluation.sequences", lambda c: c.pop("evaluation")),
}


@pytest.mark.parametrize("what", CONFIG_EDITS)
@pytest.mark.parametrize("where", ["one run", "every run"])
def test_an_edited_config_is_named(what: str, where: str, runs: Path) -> None:
    key, how = CONFIG_EDITS[what]
    for folder in [run_of(runs, "gla", 2)] if where == "one run" else [run.path for run in compare_runs(runs).runs]:
        change(folder / "experiment_config.json", how)
    found = verdict(runs)
    assert found.outcome == "confounded" and "edited" in found.confounds
    assert f"{key} of experiment_config.json" in found.evidence


def test_notes_are_the_users_own(runs: Path) -> None:
    for run in compare_runs(runs).runs:
        notes = {"notes": "looked at on Monday", "tags": ["keep"]}
        change(run.path / "experiment_config.json", lambda c, notes=notes: c["experiment"].update(notes))  # type: ignore[misc]
        change(run.path / "experiment_config.json", lambda c: c["experiment"].update(description="d", name="other"))
        change(run.path / "experiment_config.json", lambda c: c.update(notes="n"))
        change(run.path / "results.json", lambda c: c.update(notes="good"))
    assert verdict(runs).outcome == "supported"


TAKEN: dict[str, Callable[[Path], Any]] = {
    "the digest": lambda run: change(run / "results.json", lambda c: c.pop("digest")),
    "that of the config": lambda run: change(run / "results.json", lambda c: c["digest"].pop("experiment_config.json")),
    "that of the curve": lambda run: change(run / "results.json", lambda c: c["digest"].pop("metrics.jsonl")),
    "the mark that there is one": lambda run: change(run / "experiment_config.json", lambda c: c["run"].pop(DIGESTS)),
    "the config": lambda run: (run / "experiment_config.json").unlink(),
}


@pytest.mark.parametrize("what", TAKEN)
def test_a_digest_that_was_taken_out_is_missed(what: str, runs: Path) -> None:
    TAKEN[what](run_of(runs, "llama", 3))
    found = verdict(runs)
    assert found.outcome == "confounded" and "edited" in found.confounds
    assert "llama (seed 3)" in found.evidence


def test_all_digests_taken_out_are_missed(runs: Path) -> None:
    for run in compare_runs(runs).runs:
        TAKEN["the digest"](run.path)
    assert "edited" in verdict(runs).confounds


def test_all_digests_and_their_mark_are_missed_by_the_same_code_of_another_run(runs: Path) -> None:
    for run in compare_runs(runs).runs:
        if run.seed != 1:
            TAKEN["the digest"](run.path)
            TAKEN["the mark that there is one"](run.path)
    found = verdict(runs)
    assert "edited" in found.confounds and "the same code wrote one into other runs" in found.evidence


def test_old_folders_have_a_plain_remark(tmp_path: Path) -> None:
    for name, loss in (("gla", 1.5), ("llama", 1.6)):
        for seed in SEEDS:
            write_run(tmp_path, name, seed, loss=loss + 0.001 * seed * len(name), hypothesis=CLAIM)
    comparison = compare_runs(tmp_path)
    finding = next(found for found in comparison.findings if found.check == "edited")
    assert finding.severity == "note" and comparison.verdicts[0].outcome == "supported"


def test_an_extension_keeps_what_was_edited_in_mind(runs: Path) -> None:
    folder = run_of(runs, "gla", 1)
    assert facts_of_digest(folder, json.loads((folder / "experiment_config.json").read_text())) == {DIGESTS: VERSION}
    change(folder / "experiment_config.json", lambda c: c["run"].update(question=[]))
    config = json.loads((folder / "experiment_config.json").read_text())
    assert edited_config(folder, config) == ["run.question"]
    seal(folder, **facts_of_digest(folder, config))
    assert "run.question of experiment_config.json" in verdict(runs).evidence


CLAIMS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "missing": ("is gone", lambda root: (root / "claims.json").unlink()),
    "written anew": (
        "is not the one that was there when its runs began",
        lambda root: ((root / "claims.json").unlink(), register(root, "set", CLAIM, ["gla", "llama"], SEEDS)),
    ),
    "of others": (
        "names none of its runs",
        lambda root: ((root / "claims.json").unlink(), register(root, "other", "a better than b", ["a", "b"], (1,))),
    ),
}


@pytest.mark.parametrize("what", CLAIMS)
def test_claims_that_cannot_be_shown_to_be_earlier_say_so(what: str, runs: Path) -> None:
    words, do = CLAIMS[what]
    do(runs)
    comparison = compare_runs(runs)
    [entry] = [entry for entry in comparison.to_dict()["hypotheses"] if entry["claim"] == CLAIM]
    assert entry["registration"]["status"] == "not registered"
    for text in (entry["registration"]["sentence"], comparison_text(comparison, 400), render(comparison, "set")):
        assert words in text and "cannot be shown to have been made before the results" in text


def test_without_any_claims_file_it_is_said(tmp_path: Path) -> None:
    for name, loss in (("gla", 1.5), ("llama", 1.6)):
        for seed in SEEDS:
            write_run(tmp_path, name, seed, loss=loss + 0.001 * seed * len(name), hypothesis=CLAIM)
    assert "there is no claims.json" in verdict(tmp_path).registration.sentence


def test_claims_added_to_the_file_since_are_no_rewriting(runs: Path) -> None:
    register(runs, "set", f"{CLAIM}; gla within 0.2 of llama", ["gla", "llama"], SEEDS)
    found = {one.claim: one.registration.status for one in compare_runs(runs).verdicts}
    assert found == {CLAIM: "before results", "gla within 0.2 of llama": "added later"}
