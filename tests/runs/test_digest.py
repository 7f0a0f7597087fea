"""A record that was changed after the run wrote it is noticed, and later writes of ours neither break nor mend it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.core.files import write_json
from hf_arch.evaluation.model_scores import _keep
from hf_arch.runs.digest import digest_of
from hf_arch.runs.record import RunRecord, write_end, write_results
from tests.experiments.synthetic import write_run


def seal(folder: Path, **changes: Any) -> Path:
    """Writes the results of an invented run as a run does."""
    values = json.loads((folder / "results.json").read_text())
    write_results(folder, {**values, **changes})
    return folder


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in {**content, **changes}.items() if value is not None}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return seal(write_run(tmp_path))


def found(folder: Path) -> list[str] | None:
    return RunRecord.load(folder).edited


def test_what_was_written_is_as_it_was(run: Path) -> None:
    assert found(run) == []
    assert found(seal(run)) == []  # written again
    file = run / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True).replace(": 157.0", ": 157"))
    assert found(run) == []  # by another program, in another order


def test_numbers_are_equal_however_they_are_spelled() -> None:
    assert digest_of({"a": 1, "b": [1e-5, None]}) == digest_of({"b": (0.00001, float("nan")), "a": 1.0})
    assert len({digest_of(value) for value in (1, True, "1", None, 1 + 1e-12, [1])}) == 6


@pytest.mark.parametrize("changes", [{"final_val_loss": 1.0}, {"seed": 7}, {"bits_per_byte": None}, {"added": [1]}])
def test_an_edit_is_named(run: Path, changes: dict[str, Any]) -> None:
    edit(run / "results.json", **changes)
    assert found(run) == [f"{next(iter(changes))} of results.json"]


def test_an_edit_is_not_mended_by_a_later_write(run: Path) -> None:
    edit(run / "results.json", final_val_loss=1.0)
    write_end(run, None, "interrupted", "by the user")
    write_end(run, None, "completed", "completed")
    assert found(run) == ["final_val_loss of results.json"]
    seal(run, final_val_loss=1.5)  # measured again
    assert found(run) == []


def test_a_curve_that_was_changed_is_named(run: Path) -> None:
    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[-1]["val_loss"] = 0.5
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert found(run) == ["metrics.jsonl"]


def score(run: Path, **tasks: float) -> None:
    _keep(run, {"settings": {}, "results": {task: {"accuracy": value} for task, value in tasks.items()}})


def test_scores_are_added_and_those_of_before_kept(run: Path) -> None:
    score(run, one=0.5)
    score(run, two=0.25)
    assert found(run) == []
    file = run / "evaluation.json"
    scores = json.loads(file.read_text())["results"]
    edit(file, results={**scores, "one": {**scores["one"], "accuracy": 0.9}})
    assert found(run) == ["one of evaluation.json"]
    score(run, three=0.1)
    assert found(run) == ["one of evaluation.json"]
    score(run, one=0.5)
    assert found(run) == []


def test_a_record_of_before_has_no_digest(tmp_path: Path) -> None:
    assert found(write_run(tmp_path)) is None
    score(run := write_run(tmp_path, seed=2), one=0.5)
    write_json(run / "evaluation.json", {"results": {"old": {"accuracy": 1.0}}})
    score(run, one=0.5)
    assert found(run) is None


def test_a_claim_about_an_edited_run_is_confounded(tmp_path: Path) -> None:
    for name, loss in (("gla", 1.4), ("gpt2", 1.6), ("llama", 1.5)):
        for seed in (1, 2, 3):
            seal(
                write_run(tmp_path, name, seed, loss=loss + 0.001 * seed * len(name), hypothesis="gla better than gpt2")
            )
    assert "edited" not in {found.check for found in compare_runs(tmp_path).findings if found.severity != "ok"}
    folder = next(run.path for run in compare_runs(tmp_path).runs if run.label == "gla (seed 2)")
    edit(folder / "results.json", peak_memory_bytes=1)
    comparison = compare_runs(tmp_path)
    finding = next(found for found in comparison.findings if found.check == "edited")
    assert finding.severity == "violation" and "gla (seed 2): peak_memory_bytes of results.json" in finding.sentence
    assert comparison.verdicts[0].outcome == "confounded" and "edited" in comparison.verdicts[0].confounds
    edit(folder / "results.json", digest=None)
    comparison = compare_runs(tmp_path)
    finding = next(found for found in comparison.findings if found.check == "edited")
    assert finding.severity == "violation" and "taken out" in finding.sentence  # the same commit wrote others
    for run in comparison.runs:
        edit(run.path / "results.json", digest=None)
    comparison = compare_runs(tmp_path)
    finding = next(found for found in comparison.findings if found.check == "edited")
    assert finding.severity == "note" and "edited" not in comparison.verdicts[0].confounds
