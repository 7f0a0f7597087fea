"""Nothing is computed twice: recipes, configs, comparisons and figures of a set are made once and handed on."""

from __future__ import annotations

import collections
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

import hf_arch
from hf_arch.analysis import compare
from hf_arch.experiments.execution import child
from hf_arch.experiments.execution.process import train_command
from hf_arch.experiments.execution.runner import TrainedSet
from hf_arch.experiments.planning import prepare
from hf_arch.experiments.planning.plan import Planner
from hf_arch.experiments.planning.prepare import prepare_set
from hf_arch.recipe.recipe import Recipe, load_recipe
from hf_arch.report import conclude as conclusion
from hf_arch.report import plots
from hf_arch.runs.record import RunRecord
from tests.experiments.synthetic import write_suite

ATTENTION = Path(__file__).parents[2] / "recipes/experiments/attention.yaml"


class Data:
    """Prepared data as planning sees it."""

    fingerprint = "f" * 16

    class tokenizer:
        pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

        def __len__(self) -> int:
            return 512

        def get_vocab(self) -> dict[str, int]:
            return {str(token): token for token in range(512)}

    def __init__(self) -> None:
        self.tokenizer = self.tokenizer()


def test_thirty_runs_are_parsed_once_and_each_config_is_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Any] = []
    built: collections.Counter[str] = collections.Counter()
    from_dict, config_from_dict = Recipe.from_dict.__func__, hf_arch.config_from_dict  # type: ignore[attr-defined]

    def count_recipe(cls: type[Recipe], values: Any, **options: Any) -> Recipe:
        parsed.append(values)
        return from_dict(cls, values, **options)

    def count_config(values: dict[str, Any]) -> Any:
        built[json.dumps(values, sort_keys=True)] += 1
        return config_from_dict(values)

    monkeypatch.setattr(Recipe, "from_dict", classmethod(count_recipe))
    monkeypatch.setattr(hf_arch, "config_from_dict", count_config)
    monkeypatch.setattr(prepare, "prepare_data", lambda options: Data())
    prepared = prepare_set(load_recipe(ATTENTION, scale="cpu"), tmp_path)
    assert len(prepared.runs) == 30
    assert len(parsed) == 1 + 30  # the set, and each run
    assert max(built.values()) == 1
    assert not list(tmp_path.iterdir())


def test_the_process_of_a_run_plans_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(ATTENTION, scale="cpu")
    monkeypatch.setattr(prepare, "prepare_data", lambda options: Data())
    run = prepare_set(recipe, tmp_path).runs[0]
    run.folder.mkdir(parents=True)
    (run.folder / "experiment_config.json").write_text(json.dumps(run.config))
    assert train_command(run.folder / "experiment_config.json", run.folder)[-1] == str(run.folder)
    trained: list[Recipe] = []
    monkeypatch.setattr(
        "hf_arch.training.run.run_training",
        lambda recipe, folder, resume: trained.append(recipe) or {"name": "x", "status": "completed"},
    )
    monkeypatch.setattr(Planner, "__init__", lambda *_: pytest.fail("the set was planned again"))
    assert child.train_folder(run.folder) == 0
    (single,) = trained
    assert not single.experiment.is_set and single.experiment.match is None


def test_a_finished_set_is_read_compared_and_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_suite(tmp_path / "suite")
    loads: collections.Counter[str] = collections.Counter()
    drawn: collections.Counter[str] = collections.Counter()
    audits: list[int] = []
    load, canvas, audit = RunRecord.load.__func__, plots._canvas, compare.audit_set  # type: ignore[attr-defined]

    def count_load(cls: type[RunRecord], folder: Path) -> RunRecord:
        loads[str(folder)] += 1
        return load(cls, folder)

    def count_canvas(figure: plots.Figure) -> Any:
        drawn[figure.key] += 1
        return canvas(figure)

    monkeypatch.setattr(RunRecord, "load", classmethod(count_load))
    monkeypatch.setattr(plots, "_canvas", count_canvas)
    monkeypatch.setattr(compare, "audit_set", lambda runs: audits.append(len(runs)) or audit(runs))
    runs = [
        prepare.ReadyRun(folder.name, folder, {})
        for folder in sorted(suite.iterdir())
        if (folder / "results.json").is_file()
    ]
    plan = type("Plan", (), {"skipped": []})()
    prepared = prepare.PreparedSet(runs, plan, {})
    comparison = conclusion.conclude(TrainedSet(prepared, []), suite)
    assert comparison is not None and len(comparison.runs) == len(runs)
    assert set(loads.values()) == {1} and len(loads) == len(runs)
    assert audits == [len(runs)]
    assert drawn and set(drawn.values()) == {1}
    assert {path.stem for path in (suite / "figures").glob("*.png")} == set(drawn)


def test_the_documented_old_place_of_the_report_still_has_it() -> None:
    from hf_arch.report.page import write_report

    old = importlib.import_module(".report", "hf_arch.experiments")
    with pytest.warns(DeprecationWarning, match=r"hf_arch\.report\.page"):
        assert old.write_report is write_report
