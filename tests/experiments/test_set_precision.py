"""All runs of a set compute in one precision, whoever trains them and whatever their machines measure."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_arch.core.files import create_atomic, read_json
from hf_arch.experiments.execution.set_precision import with_set_precision
from hf_arch.experiments.execution.worker import Suite
from hf_arch.runs.record import RunRecord
from hf_arch.training.precision import Precision
from tests.experiments.test_worker import OPTIONS, ready

OPEN = {"model": {"architecture": "llama"}, "run": {"name": "a"}}
pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="nothing is measured beside an accelerator")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each further machine would choose by itself."""
    choices = ["bf16", "fp32", "fp32"]
    monkeypatch.setattr(
        "hf_arch.training.precision.choose_precision", lambda: Precision(choices.pop(0), "measured on this CPU")
    )
    return choices


def test_the_first_decides_and_the_others_follow(tmp_path: Path, machine: list[str]) -> None:
    configs = [with_set_precision(OPEN, tmp_path) for _ in range(3)]
    assert [config["run"]["precision"]["name"] for config in configs] == ["bf16"] * 3
    assert configs[0]["run"]["name"] == "a" and "precision" not in OPEN["run"]
    assert machine == ["fp32", "fp32"]  # nothing more was measured


@pytest.mark.parametrize(
    "config",
    [{**OPEN, "training": {"precision": "fp32"}}, {**OPEN, "probe": {"task": "mqar"}}, {"run": {"name": "stand-in"}}],
)
def test_a_run_that_leaves_nothing_open_is_as_it_was(
    tmp_path: Path, machine: list[str], config: dict[str, Any]
) -> None:
    assert with_set_precision(config, tmp_path) == config
    assert len(machine) == 3


def test_a_set_goes_on_in_the_precision_it_was_begun_in(tmp_path: Path, machine: list[str]) -> None:
    earlier = RunRecord.from_files(tmp_path, {"precision": "fp32", "status": "completed"}, {})
    assert with_set_precision(OPEN, tmp_path, [None, earlier])["run"]["precision"]["name"] == "fp32"
    assert len(machine) == 3


def test_workers_write_the_decision_into_each_config(tmp_path: Path, machine: list[str]) -> None:
    runs = [ready(tmp_path, name) for name in ("a", "b")]
    runs = [type(run)(run.name, run.folder, {**run.config, "model": {}}) for run in runs]
    assert Suite(runs, tmp_path, OPTIONS).work() == []
    assert [read_json(run.folder / "experiment_config.json")["run"]["precision"]["name"] for run in runs] == [
        "bf16"
    ] * 2


def test_of_several_writers_one_creates_a_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: create_atomic(file, str(number)), range(8)))
    assert created.count(True) == 1 and file.read_text() == str(created.index(True))
    assert list(file.parent.iterdir()) == [file]
