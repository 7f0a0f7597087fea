"""The check of a GPU, small on a CPU: it ends in time, notes what fails, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu.errors import relative_error, require_close
from tools import gpu_models, gpu_recurrences
from tools.gpu_report import markdown, summarise_tests
from tools.gpu_timing import Bench, Row, attempt, run_section

ROOT = Path(__file__).parents[2]
BENCH = Bench(torch.device("cpu"), True)


def test_a_section_ends_in_time_and_keeps_its_rows() -> None:
    def slow(bench: Bench) -> Iterator[Row]:
        yield {"row": 1}
        time.sleep(30)
        yield {"row": 2}

    done = run_section(slow, BENCH, 0.2)
    assert (done["status"], done["rows"]) == ("out of time", [{"row": 1}]) and done["seconds"] < 5


def test_a_failing_row_and_a_failing_section_are_noted() -> None:
    def fails() -> Row:
        raise RuntimeError("no\nkernel")

    def rows(bench: Bench) -> Iterator[Row]:
        yield attempt({"row": 1}, fails, bench)
        yield attempt({"row": 2}, lambda: {"milliseconds": 1.0}, bench)

    done = run_section(rows, BENCH, 5)
    assert done["status"] == "failed"
    assert done["rows"] == [{"row": 1, "error": "RuntimeError: no kernel"}, {"row": 2, "milliseconds": 1.0}]

    def breaks(bench: Bench) -> Iterator[Row]:
        yield {"row": 1}
        raise RuntimeError("broken")

    assert "broken" in run_section(breaks, BENCH, 5)["error"]


def test_an_interrupted_section_leaves_no_autocast_behind() -> None:
    """Weights cast inside an autocast that nobody leaves are kept: the next training would not learn."""

    def leaves(bench: Bench) -> Iterator[Row]:
        torch.autocast_increment_nesting()
        torch.set_autocast_enabled("cpu", True)
        yield {}

    run_section(leaves, BENCH, 5)
    assert not torch.is_autocast_enabled("cpu")
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    found = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(layer(x))
        with torch.no_grad():
            layer.weight.add_(1.0)
    assert not torch.equal(*found)


def test_errors_name_their_tensor_and_never_pass_nan() -> None:
    good, bad = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    assert relative_error(good, good) == 0 and relative_error(bad, good) == float("inf")
    with pytest.raises(AssertionError, match=r"outputs, tensor 1 of 2: error 1\.00e-01 > 1e-02"):
        require_close("outputs", (good, good * 1.1), (good, good), 1e-2)


@pytest.mark.parametrize("section", [gpu_models.machine, gpu_models.crossover, gpu_models.decoding])
def test_sections_run_small(section) -> None:
    done = run_section(section, BENCH, 60)
    assert done["status"] == "ok", done["error"]


def test_every_recurrence_is_measured_small() -> None:
    rows = run_section(gpu_recurrences.recurrences, BENCH, 60)["rows"]
    assert {row["op"] for row in rows} == set(gpu_recurrences.MAKERS)
    assert all(row["milliseconds"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("section", [gpu_models.mixers, gpu_models.training, gpu_models.losses])
def test_longer_sections_run_small(section) -> None:
    done = run_section(section, BENCH, 120)
    assert done["status"] == "ok", done["error"]


def test_failures_and_counts_of_tests_are_summarised() -> None:
    rows = [
        {
            "test": "test_ops.py::test_a[gla-fla]",
            "outcome": "passed",
            "seconds": 1,
            "errors": {"o": 0.1},
            "message": "",
        },
        {
            "test": "test_ops.py::test_a[ssd-fla]",
            "outcome": "failed",
            "seconds": 2,
            "errors": {},
            "message": "E  wrong",
        },
    ]
    found = summarise_tests(rows)
    assert found["counts"] == {"test_ops.py::test_a": {"passed": 1, "failed": 1}}
    assert found["worst_errors"] == {"test_ops.py::test_a, fla": {"o": 0.1}}
    environment = {"device": "GPU", "python": "3.12", "versions": {"torch": "2.11"}}
    sections = {"tests": {"status": "failed", "seconds": 3, **found}}
    page = markdown({"command": "x", "at": "now", "environment": environment, "sections": sections})
    assert "1 failed, 1 passed" in page and "`test_ops.py::test_a[ssd-fla]`: wrong" in page


@pytest.mark.rest
def test_the_script_writes_its_json_and_its_tables(tmp_path: Path) -> None:
    command = ["bash", "scripts/gpu_check.sh", "--small", "--out", str(tmp_path), "--only", "machine,crossover"]
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [part["status"] for part in document["sections"].values()] == ["ok", "ok"]
    assert "| 4×32×2 |" in (tmp_path / "gpu_check.md").read_text()
