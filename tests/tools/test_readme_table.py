"""The README's table holds measured numbers only, of runs measured alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_arch.core.errors import ConfigError
from tools.readme_table import END, START, benchmark_table, fill_readme, main

NUMBERS = {
    "final_val_loss": 3.0,
    "params_total": 1_234_567,
    "train_tokens_per_second": 5000.4,
    "decode_tokens_per_second": 321.0,
    "peak_memory_bytes": 3 << 20,
    "tokens_seen": 100_000,
}


def run(folder: Path, name: str, seed: int = 0, hellaswag: dict[str, Any] | None = None, **changes: Any) -> Path:
    path = folder / f"{name}{seed}_12345678"
    path.mkdir(parents=True)
    results = {
        "name": name,
        "seed": seed,
        "status": "completed",
        "precision": "fp32",
        "sequence_length": 64,
        "provenance": {"device": "a processor", "threads": 2},
        **NUMBERS,
        **changes,
    }
    (path / "results.json").write_text(json.dumps({key: value for key, value in results.items() if value is not None}))
    scores = {"acc_norm": 0.25, "acc_norm_stderr": 0.01, "samples": 200, "rows": "somewhere", **(hellaswag or {})}
    (path / "evaluation.json").write_text(json.dumps({"results": {"hellaswag": scores}}))
    return path


def readme(folder: Path) -> Path:
    path = folder / "README.md"
    path.write_text(f"# Title\n\n{START}\nold\n{END}\n\nrest\n")
    return path


def test_the_table_is_the_means_over_seeds_and_says_how(tmp_path: Path) -> None:
    run(tmp_path / "runs", "gla", 0, {"acc_norm": 0.30})
    run(tmp_path / "runs", "gla", 1, {"acc_norm": 0.26}, train_tokens_per_second=3000.4)
    run(tmp_path / "runs", "llama", 0)
    run(tmp_path / "runs", "llama", 1)
    table = benchmark_table(str(tmp_path / "runs"))
    assert "| gla | 1,234,567 | 28.0 % ± 1.0 | 4,000 | 321 | 3.00 MiB |" in table
    assert "a processor (2 threads, fp32, rows of 64 tokens), 2 seeds each, after 100,000 tokens" in table
    assert "the first 200 rows (somewhere)" in table
    assert "TBD" not in table


def test_only_what_is_between_the_comments_changes(tmp_path: Path) -> None:
    run(tmp_path / "runs", "gla")
    path = readme(tmp_path)
    for _ in range(2):  # again: the same
        table = fill_readme(str(tmp_path / "runs"), str(path))
        assert path.read_text() == f"# Title\n\n{START}\n\n{table}\n{END}\n\nrest\n"


@pytest.mark.parametrize("missing", ["train_tokens_per_second", "decode_tokens_per_second", "peak_memory_bytes"])
def test_what_was_not_measured_is_refused(tmp_path: Path, missing: str) -> None:
    run(tmp_path / "runs", "gla")
    run(tmp_path / "runs", "llama", **{missing: None})
    path = readme(tmp_path)
    before = path.read_text()
    with pytest.raises(ConfigError, match=f"llama0_12345678: {missing} was not measured"):
        fill_readme(str(tmp_path / "runs"), str(path))
    assert path.read_text() == before


def test_a_run_without_hellaswag_is_refused_with_the_command(tmp_path: Path) -> None:
    (run(tmp_path / "runs", "gla") / "evaluation.json").unlink()
    with pytest.raises(ConfigError, match=r"HellaSwag was not measured; first: hf-arch eval \S+ --tasks hellaswag"):
        benchmark_table(str(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("hellaswag", "changes", "expected"),
    [
        ({"samples": 40}, {}, "rows of HellaSwag"),
        ({"rows": "elsewhere"}, {}, "origin of HellaSwag's rows"),
        ({}, {"provenance": {"device": "another", "threads": 2}}, "device"),
        ({}, {"provenance": {"device": "a processor", "threads": 1}}, "threads"),
        ({}, {"precision": "bf16"}, "precision"),
        ({}, {"provenance": {"device": "a processor", "threads": 2, "numerics": 5}}, "numerics"),
    ],
)
def test_runs_measured_differently_share_no_table(
    tmp_path: Path, hellaswag: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    run(tmp_path / "runs", "gla")
    run(tmp_path / "runs", "llama", 0, hellaswag, **changes)
    with pytest.raises(ConfigError, match=f"differ in {expected}"):
        benchmark_table(str(tmp_path / "runs"))


def test_the_table_says_by_which_numerics_its_runs_were_trained(tmp_path: Path) -> None:
    run(tmp_path / "runs", "gla", provenance={"device": "a processor", "threads": 2, "numerics": 5})
    assert "rows of 64 tokens, numerics 5), 1 seed each" in benchmark_table(str(tmp_path / "runs"))


def test_failed_runs_are_left_out_and_none_at_all_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "runs", "gla", status="failed")
    with pytest.raises(ConfigError, match="contains no finished run"):
        benchmark_table(str(tmp_path / "runs"))
    run(tmp_path / "runs", "llama")
    assert "gla" not in benchmark_table(str(tmp_path / "runs"))


@pytest.mark.parametrize("text", ["", f"{START}", f"{END}\n{START}", f"{START}\n{START}\n{END}"])
def test_a_readme_without_the_comments_is_refused(tmp_path: Path, text: str) -> None:
    run(tmp_path / "runs", "gla")
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ConfigError, match="has to hold the lines"):
        fill_readme(str(tmp_path / "runs"), str(tmp_path / "README.md"))


def test_the_command_fills_the_file_or_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = readme(tmp_path)
    assert main([str(tmp_path / "runs"), "--readme", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: results folder: ")
    run(tmp_path / "runs", "gla")
    assert main([str(tmp_path / "runs"), "--readme", str(path)]) == 0
    assert capsys.readouterr().out.strip() in path.read_text()
