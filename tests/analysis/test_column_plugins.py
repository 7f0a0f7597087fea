"""Columns from plugin files: in every table, from the run's own copy, and no part of what a run is."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.checkpoints.plugin_copies import copy_facts, write_copies
from hf_arch.core.errors import ConfigError
from hf_arch.core.plugin_source import read_source
from hf_arch.core.plugins import load_source, separate_plugins
from hf_arch.core.registry import COLUMNS
from hf_arch.recipe.recipe import Recipe
from hf_arch.report.page import write_report
from hf_arch.runs.plugins import keep_plugins
from tests.experiments.synthetic import write_run
from tests.report.text import comparison_text

COLUMN = Path(__file__).parents[1] / "ideas" / "tokens_per_parameter.py"
NAME = "idea_tokens_per_parameter"
CODE = """
from hf_arch.core.registry import COLUMNS
from hf_arch.runs.columns import ReportColumn


@COLUMNS.register("column_of_mine")
class Mine(ReportColumn):
    {facts}

    def value(self, record):
        {body}
"""


def write_runs(root: Path, plugin: Path, name: str, **config: Any) -> list[Path]:
    """Two architectures with two seeds, whose recipes name a column and whose folders keep its plugin."""
    source = read_source(plugin)
    folders = []
    for architecture in ("gla", "gpt2"):
        for seed in (1, 2):
            folder = write_run(root, architecture, seed)
            facts = copy_facts([source], folder)
            write_copies(folder, facts, [source])
            written = json.loads((folder / "experiment_config.json").read_text())
            written.setdefault("experiment", {})["columns"] = [name]
            written.setdefault("run", {})["plugins"] = facts
            (folder / "experiment_config.json").write_text(json.dumps(written))
            folders.append(folder)
    return folders


def test_what_another_recipe_has_loaded_is_shown_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE.format(facts='title = "mine"', body="return []"))
    load_source(read_source(tmp_path / "mine.py"))
    assert "column_of_mine" in COLUMNS
    write_run(tmp_path / "runs", "gla", 1)
    assert not compare_runs(tmp_path / "runs").plugin_columns


def test_tables_pages_and_rows_show_it(tmp_path: Path) -> None:
    write_runs(tmp_path, COLUMN, NAME)
    comparison = compare_runs(tmp_path)
    assert NAME not in COLUMNS  # only while the value was made
    text = comparison_text(comparison, width=200)
    assert "tokens/param" in text and f"{200 * 4096 / 1_201_408:.2f}" in text
    page = write_report(tmp_path, comparison=comparison, png=False).read_text()
    assert "tokens/param" in page and "training tokens for each parameter" in page
    rows = {row["name"]: row[NAME] for row in comparison.to_dict()["groups"]}
    assert rows["gla"] == pytest.approx(200 * 4096 / 1_201_408)
    assert NAME in comparison.frame().columns


def test_the_environment_shows_it_for_any_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "gla", 1)
    assert "tokens/param" not in comparison_text(compare_runs(tmp_path), width=200)
    monkeypatch.setenv("HF_ARCH_PLUGINS", str(COLUMN))
    assert "tokens/param" in comparison_text(compare_runs(tmp_path), width=200)


def test_a_run_keeps_it_and_does_not_depend_on_it(tmp_path: Path) -> None:
    def recipe(columns: list[str], code: str = "") -> Recipe:
        plugin = tmp_path / "tokens_per_parameter.py"
        plugin.write_text(COLUMN.read_text() + code)
        model = {"architecture": "llama", "plugins": [str(plugin)]}
        return Recipe.from_dict({"model": model, "experiment": {"name": "one", "columns": columns}})

    with separate_plugins():
        plain = recipe([]).stable_hash()
    with separate_plugins():
        using = recipe([NAME])
        assert using.stable_hash() == plain and using.single("two", {}).experiment.columns == (NAME,)
        kept, facts = keep_plugins(using, tmp_path / "run")
        assert list(facts) == ["plugins/tokens_per_parameter.py"]
        assert [Path(path).parent.name for path in kept.model["plugins"]] == ["plugins"]
    with separate_plugins():
        assert recipe([NAME], "\n# changed\n").stable_hash() == plain
    expected = r"experiment\.columns: 'idea_tokens' is not known; nearest: 'idea_tokens_per_parameter'"
    with separate_plugins(), pytest.raises(ConfigError, match=expected):
        recipe(["idea_tokens"])


def test_versions_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = write_runs(tmp_path / "runs", COLUMN, NAME)
    changed = tmp_path / "tokens_per_parameter.py"
    changed.write_text(COLUMN.read_text() + "\n# changed\n")
    source = read_source(changed)
    copy = folders[0] / "plugins" / "tokens_per_parameter.py"
    copy.unlink()
    written = json.loads((folders[0] / "experiment_config.json").read_text())
    written["run"]["plugins"] = copy_facts([source], folders[0])
    (folders[0] / "experiment_config.json").write_text(json.dumps(written))
    write_copies(folders[0], written["run"]["plugins"], [source])
    with caplog.at_level(logging.WARNING, "hf_arch"):
        compare_runs(tmp_path / "runs")
    assert f"column {NAME}: the runs keep 2 versions of it" in caplog.text


@pytest.mark.parametrize(
    ("facts", "body", "expected"),
    [
        ("pass", "return [1]", "value returned list; expected number, text or None"),
        ("pass", "return True", "value returned bool"),
        ("pass", "return 1 / 0", "line 11: ZeroDivisionError: division by zero"),
        ("show = 'zzz'", "return 1.0", "show: 'zzz' does not write a number"),
    ],
)
def test_a_wrong_column_is_one_line(facts: str, body: str, expected: str, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(CODE.replace("{facts}", facts).replace("{body}", body))
    write_runs(tmp_path / "runs", plugin, "column_of_mine")
    with pytest.raises(ConfigError) as caught:
        compare_runs(tmp_path / "runs")
    said = str(caught.value)
    assert said.startswith("column 'column_of_mine': ") and expected in said and "\n" not in said


def test_texts_and_gaps(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    body = "return {'gla': 'linear', 'gpt2': float('nan')}[record.architecture]"
    plugin.write_text(CODE.replace("{facts}", "title = 'kind'").replace("{body}", body))
    write_runs(tmp_path / "runs", plugin, "column_of_mine")
    comparison = compare_runs(tmp_path / "runs")
    assert {row["name"]: row["column_of_mine"] for row in comparison.to_dict()["groups"]} == {
        "gla": "linear",
        "gpt2": None,
    }
    assert "kind" in comparison_text(comparison, width=200)
