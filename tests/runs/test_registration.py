"""Claims written down before there are results: what is added, changed or taken out later stays marked."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.cli.run import run_recipe
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_json
from hf_arch.experiments.execution.runner import RunOptions
from hf_arch.report.page import render
from hf_arch.runs.claims import claims_in
from hf_arch.runs.files import CLAIMS_FILE
from hf_arch.runs.registration import claims_made, read_entries, register
from tests.report.text import comparison_text

BETTER, WORSE = "gla better than llama", "gla worse than llama"
LOSSES = {"gla": 1.50, "llama": 1.60}


def finished(folder: Path, hypothesis: str = "", seeds: tuple[int, ...] = (1, 2, 3)) -> None:
    """Runs with results, as a set leaves them."""
    for name, loss in LOSSES.items():
        for seed in seeds:
            run = folder / f"{name}_{seed:010x}"
            run.mkdir(parents=True, exist_ok=True)
            results = {"name": name, "status": "completed", "seed": seed, "final_val_loss": loss + 0.001 * seed**2}
            write_json(run / "results.json", {**results, "architecture": name, "hypothesis": hypothesis})


def registered(folder: Path, hypothesis: str, minute: int = 0, seeds: tuple[int, ...] = (1, 2, 3)) -> None:
    register(folder, "set", hypothesis, ["gla", "llama"], seeds, now=datetime(2026, 1, 1, 12, minute, tzinfo=UTC))


def standing(folder: Path) -> dict[str, tuple[str, bool]]:
    """{claim: (when it was made, whether it was removed later)} as a comparison has it."""
    verdicts = compare_runs(folder).verdicts
    return {v.claim: (v.registration.status, v.registration.removed is not None) for v in verdicts}


def test_claims_are_those_of_the_text_in_any_layout() -> None:
    assert claims_in(f"We think that {BETTER}, and\n  gla   within 0.1\n of llama.") == (
        BETTER, "gla within 0.1 of llama",
    )  # fmt: skip
    assert claims_in("  gates \n help ") == ("gates help",)
    assert claims_in(" ") == ()


def test_a_claim_made_before_the_results_says_so(tmp_path: Path) -> None:
    registered(tmp_path, BETTER)
    finished(tmp_path)
    registered(tmp_path, BETTER, 5)  # resumed
    assert len(read_entries(tmp_path)) == 1
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.mark == "" and verdict.registration.status == "before results"
    assert verdict.registration.sentence == "registered 2026-01-01T12:00:00Z, before any result"
    assert len(verdict.registration.hash or "") == 64


def test_a_changed_claim_is_added_later_for_good(tmp_path: Path) -> None:
    """Back and forth, with more seeds, with the runs of controls: the mark stays, and what was taken out is judged."""
    registered(tmp_path, BETTER)
    finished(tmp_path)
    registered(tmp_path, WORSE, 1)
    assert standing(tmp_path) == {BETTER: ("before results", True), WORSE: ("added later", False)}
    registered(tmp_path, BETTER, 2)
    assert standing(tmp_path) == {BETTER: ("added later", False), WORSE: ("added later", True)}
    registered(tmp_path, WORSE, 3, seeds=(1, 2, 3, 4, 5))
    names = ["gla", "llama", "gla+short_convolution"]
    register(tmp_path, "set", WORSE, names, (1, 2, 3), now=datetime(2026, 1, 1, 12, 4, tzinfo=UTC))
    register(tmp_path, "renamed", WORSE, ["llama", "gla"], (1,), now=datetime(2026, 1, 1, 12, 5, tzinfo=UTC))
    assert standing(tmp_path) == {BETTER: ("added later", True), WORSE: ("added later", False)}


def test_seeds_that_are_added_after_results_are_said(tmp_path: Path) -> None:
    registered(tmp_path, BETTER)
    registered(tmp_path, BETTER, 1, seeds=(1, 2, 3, 4))
    finished(tmp_path, seeds=(1, 2, 3, 4))
    assert compare_runs(tmp_path).verdicts[0].mark == ""
    registered(tmp_path, BETTER, 2, seeds=(1, 2))
    assert compare_runs(tmp_path).verdicts[0].mark == ""
    registered(tmp_path, BETTER, 3, seeds=(1, 2, 3, 4, 5))
    verdict = compare_runs(tmp_path).verdicts[0]
    assert verdict.mark == "more seeds later" and verdict.registration.status == "before results"
    assert "more seeds since 2026-01-01T12:03:00Z, after results of 8 runs, for which p is not corrected" in (
        verdict.registration.sentence
    )


def test_the_limits_of_seeds_as_needed_are_part_of_what_was_said(tmp_path: Path) -> None:
    for minute, most in ((0, 5), (1, 5), (2, 8)):
        now = datetime(2026, 1, 1, 12, minute, tzinfo=UTC)
        register(tmp_path, "set", BETTER, ["gla", "llama"], (1, 2, 3), most, now=now)
        finished(tmp_path)
        later = compare_runs(tmp_path).verdicts[0].registration.more_seeds
        assert later == (None if most == 5 else "2026-01-01T12:02:00Z")


def test_results_stay_known_where_their_folders_are_deleted(tmp_path: Path) -> None:
    registered(tmp_path, BETTER)
    finished(tmp_path)
    registered(tmp_path, WORSE, 1)
    for run in tmp_path.glob("*/results.json"):
        run.unlink()
        run.parent.rmdir()
    registered(tmp_path, "gla within 0.2 of llama", 2)
    finished(tmp_path)
    assert standing(tmp_path)["gla within 0.2 of llama"] == ("added later", False)
    assert standing(tmp_path)[WORSE] == ("added later", True)


def test_renamed_folders_keep_their_claims_and_their_results(tmp_path: Path) -> None:
    registered(tmp_path, BETTER)
    finished(tmp_path)
    for index, run in enumerate(sorted(path for path in tmp_path.iterdir() if path.is_dir())):
        run.rename(tmp_path / f"moved{index}")
    assert standing(tmp_path) == {BETTER: ("before results", False)}
    registered(tmp_path, WORSE, 1)
    assert standing(tmp_path) == {BETTER: ("before results", True), WORSE: ("added later", False)}


def test_the_claims_of_another_set_are_not_those_of_these_runs(tmp_path: Path) -> None:
    register(tmp_path, "other", "mamba better than gpt2", ["mamba", "gpt2"], (1, 2, 3))
    finished(tmp_path, BETTER)
    [verdict] = compare_runs(tmp_path).verdicts
    assert verdict.registration.status == "not registered"
    assert "claims.json of the folder names none of its runs" in verdict.registration.sentence


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_claim_that_one_of_two_folders_added_later_was_added_later(tmp_path: Path, order: tuple[str, str]) -> None:
    early, late = (tmp_path / name for name in order)
    registered(early, BETTER)
    finished(early, seeds=(1, 2))
    finished(late, seeds=(3, 4))
    registered(late, "", 1)
    registered(late, BETTER, 2)
    assert standing(tmp_path) == {BETTER: ("added later", False)}


def test_a_claim_may_be_changed_before_there_are_results(tmp_path: Path) -> None:
    registered(tmp_path, BETTER)
    registered(tmp_path, WORSE, 1)
    finished(tmp_path)
    assert standing(tmp_path) == {WORSE: ("before results", False)}
    assert len(read_entries(tmp_path)) == 2


def test_a_curve_is_a_result(tmp_path: Path) -> None:
    registered(tmp_path, BETTER)
    (tmp_path / "gla_0123456789").mkdir()
    write_json(tmp_path / "gla_0123456789" / "results.json", {"name": "gla", "status": "running"})
    registered(tmp_path, WORSE, 1)
    assert read_entries(tmp_path)[-1].results == 0
    (tmp_path / "gla_0123456789" / "metrics.jsonl").write_text('{"step": 1, "loss": 4.0}\n')
    registered(tmp_path, BETTER, 2)
    assert read_entries(tmp_path)[-1].results == 1


def test_runs_of_another_set_in_the_folder_are_no_results_of_this_one(tmp_path: Path) -> None:
    registered(tmp_path, BETTER)
    finished(tmp_path)
    register(tmp_path, "other", "wide better than deep", ["wide", "deep"], (1, 2))
    assert read_entries(tmp_path)[-1].results == 0
    assert standing(tmp_path) == {BETTER: ("before results", False)}


def test_folders_of_earlier_releases_hold_their_claims_themselves(tmp_path: Path) -> None:
    finished(tmp_path, BETTER)
    assert standing(tmp_path) == {BETTER: ("not registered", False)}
    registered(tmp_path, f"{BETTER}; gla within 0.2 of llama")
    assert standing(tmp_path) == {
        BETTER: ("before results", False), "gla within 0.2 of llama": ("added later", False),
    }  # fmt: skip


def test_the_mark_is_in_json_on_the_terminal_and_on_the_page(tmp_path: Path) -> None:
    registered(tmp_path, BETTER)
    finished(tmp_path)
    registered(tmp_path, WORSE, 1)
    comparison = compare_runs(tmp_path)
    said = {entry["claim"]: entry["registration"] for entry in comparison.to_dict()["hypotheses"]}
    assert said[WORSE]["status"] == "added later" and said[BETTER]["removed"] == "2026-01-01T12:01:00Z"
    for text in (comparison_text(comparison, 300), render(comparison, "set")):
        assert "added later" in text and "removed later" in text
        assert "added later, 2026-01-01T12:01:00Z, after results of 6 runs" in text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: "[]", "expected a JSON object"),
        (lambda text: text.replace(BETTER, WORSE), "changed by hand"),
        (lambda text: text.replace('"results": 0', '"results": "0"'), "results: '0' is not allowed"),
        (lambda text: text.replace('"seeds"', '"seed"'), "expected an object with"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "newer hf_arch"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": "1"'), "expected a whole number"),
        (lambda text: json.dumps({"schema_version": 1}), "entries: expected a list"),
    ],
)
def test_a_damaged_file_is_one_line_and_left_alone(tmp_path: Path, damage: Any, words: str) -> None:
    registered(tmp_path, BETTER)
    finished(tmp_path)
    file = tmp_path / CLAIMS_FILE
    file.write_text(damage(file.read_text()))
    before = file.read_bytes()
    for attempt in (lambda: registered(tmp_path, BETTER, 9), lambda: compare_runs(tmp_path)):
        with pytest.raises(ConfigError, match=words) as error:
            attempt()
        assert "\n" not in str(error.value) and CLAIMS_FILE in str(error.value)
    assert file.read_bytes() == before


def recipe(folder: Path, hypothesis: str, **experiment: Any) -> Path:
    model = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "ffn": "none"}
    runs = {name: {"model.architecture": name} for name in LOSSES}
    values = {"name": "set", "hypothesis": hypothesis, "seeds": 2, "runs": runs, **experiment}
    file = folder / "recipe.yaml"
    probe, training = {"task": "parity"}, {"max_steps": 1}
    file.write_text(json.dumps({"model": model, "probe": probe, "training": training, "experiment": values}))
    return file


@pytest.mark.rest
@pytest.mark.parametrize("kind", ["plain", "rates"])
def test_the_claims_are_there_before_the_first_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[int] = []

    def train(prepared: Any, _folder: Path, _options: RunOptions) -> list[Any]:
        found.append(read_entries(tmp_path / "results")[0].results)
        for index, run in enumerate(prepared.runs):
            write_json(run.folder / "experiment_config.json", run.config)
            numbers = {"final_val_loss": 1.0 + 0.01 * index, "accuracy": 0.5 + 0.01 * index**2}
            facts = {"name": run.name, "status": "completed", "seed": run.config["training"]["seed"]}
            write_json(run.folder / "results.json", {**facts, **numbers})
        return []

    for module in ("sets", "rates"):
        monkeypatch.setattr(f"hf_arch.experiments.execution.{module}.train_set", train)
    more = {"learning_rates": [1e-3, 3e-3, 1e-2]} if kind == "rates" else {}
    run_recipe(recipe(tmp_path, BETTER, **more), tmp_path / "results", RunOptions(), dry_run=True)
    assert not (tmp_path / "results").exists()
    run_recipe(recipe(tmp_path, BETTER, **more), tmp_path / "results", RunOptions())
    assert set(found) == {0}
    run_recipe(recipe(tmp_path, WORSE, **{**more, "seeds": 3}), tmp_path / "results", RunOptions())
    captured = capsys.readouterr()
    assert f"claim: {WORSE}: added later" in captured.err
    assert "Hypothesis (added later): " + WORSE in captured.out
    made = claims_made(compare_runs(tmp_path / "results").runs)
    assert {one.claim: one.registration.status for one in made} == {BETTER: "before results", WORSE: "added later"}
    (tmp_path / "results" / CLAIMS_FILE).write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        run_recipe(recipe(tmp_path, WORSE, **more), tmp_path / "results", RunOptions())


def test_a_set_without_a_hypothesis_writes_nothing(tmp_path: Path) -> None:
    registered(tmp_path, " ")
    assert not (tmp_path / CLAIMS_FILE).exists()
