"""Results on disk: what is written is read back, a crash never leaves half a file, corrupt files are named."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json, write_json
from hf_arch.runs.files import read_metrics
from hf_arch.runs.record import RunRecord
from hf_arch.runs.suite import find_runs, latest, write_suite_results
from tests.experiments.synthetic import write_failed_run, write_run, write_suite


def test_a_run_is_read_with_its_types(tmp_path: Path) -> None:
    run = RunRecord.load(write_run(tmp_path, "gla", 2, loss=1.5))
    assert (run.name, run.architecture, run.seed, run.learning_rate) == ("gla", "gla", 2, 1e-3)
    assert run.completed
    assert run.numbers["final_val_loss"] == 1.5
    assert run.metrics[-1]["step"] == 200
    assert run.hypothesis == "gla better than gpt2"


def test_missing_keys_are_absent_and_the_config_stands_in(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "gla", 2)
    (folder / "results.json").unlink()
    run = RunRecord.load(folder)
    assert (run.name, run.architecture, run.seed, run.learning_rate) == ("gla", "gla", 2, 1e-3)
    assert run.status == "running"
    assert run.numbers == {} and not run.completed


def test_a_nan_loss_is_no_completed_run(tmp_path: Path) -> None:
    run = RunRecord.load(write_run(tmp_path, results={"final_val_loss": math.nan}))
    assert run.status == "completed" and not run.completed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"status": "comp', "not valid JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"status": "done"}', "status: 'done' is not known"),
        ('{"final_val_loss": "1.5"}', "final_val_loss: expected a number"),
    ],
)
def test_corrupt_results_name_the_file_on_one_line(tmp_path: Path, content: str, message: str) -> None:
    folder = write_run(tmp_path)
    (folder / "results.json").write_text(content)
    with pytest.raises(ConfigError) as error:
        find_runs(tmp_path)
    assert message in str(error.value)
    assert str(folder / "results.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_atomic_write_keeps_the_old_file_when_the_new_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "results.json"
    write_json(path, {"loss": 1.0})

    def full_disk(_descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"loss": 2.0})
    assert read_json(path) == {"loss": 1.0}
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_written_json_is_strict(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"nan": math.nan, "nested": [math.inf, Path("x")], 3: (1, 2)})
    payload = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert payload == {"nan": None, "nested": [None, "x"], "3": [1, 2]}


def test_a_torn_last_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.9}\n{"step": 3, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_a_torn_line_inside_metrics_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "lo\n{"step": 2, "loss": 1.9}\n')
    with pytest.raises(ConfigError, match="line 1 is not valid JSON"):
        read_metrics(path)


def test_steps_repeated_after_a_resume_replace_the_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [(10, 3.0), (20, 2.0), (30, 1.0), (20, 2.5), (30, 1.5)]
    path.write_text("".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in rows))
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(10, 3.0), (20, 2.5), (30, 1.5)]


def test_runs_are_found_at_any_depth_but_not_inside_a_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "suite" / "inner", "gla", 1)
    (folder / "checkpoints" / "step-100" / "results.json").write_text("{}")
    write_run(tmp_path / "other", "gpt2", 1)
    assert [run.name for run in find_runs(tmp_path)] == ["gpt2", "gla"]


def test_latest_orders_by_the_last_write(tmp_path: Path) -> None:
    for age, name in enumerate(("gla", "gpt2", "llama")):
        os.utime(write_run(tmp_path, name, 1) / "results.json", (1_000_000 - age, 1_000_000 - age))
    assert [run.name for run in latest(tmp_path, 2)] == ["gla", "gpt2"]


@pytest.mark.parametrize("make", [False, True])
def test_no_runs_says_what_was_looked_for(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(ConfigError, match="nothing"):
        find_runs(folder)


def test_a_matrix_over_learning_rates_or_seeds_stays_one_name(tmp_path: Path) -> None:
    for name in ("gla-learning_rate-0.001", "gla-learning_rate-1e-05", "gla-seed-3"):
        assert RunRecord.load(write_run(tmp_path, name, 1)).name == "gla"
    assert RunRecord.load(write_run(tmp_path, "gla-hidden_size-128", 1)).name == "gla-hidden_size-128"


def test_suite_files_hold_every_run(tmp_path: Path) -> None:
    suite, benchmarks = write_suite_results(write_suite(tmp_path))
    written = read_json(suite)
    assert written["status"] == {"completed": 12, "failed": 1}
    assert written["hypotheses"] == ["gla better than gpt2"]
    assert {run["folder"] for run in written["runs"]} == {path.name for path in tmp_path.iterdir() if path.is_dir()}
    rows = read_json(benchmarks)["results"]
    assert len(rows) == 13
    assert {row["final_val_loss"] is None for row in rows if row["status"] == "failed"} == {True}


def test_a_failed_run_keeps_its_reason(tmp_path: Path) -> None:
    run = RunRecord.load(write_failed_run(tmp_path))
    assert run.status == "failed"
    assert "MemoryError" in run.provenance["exit_reason"]
