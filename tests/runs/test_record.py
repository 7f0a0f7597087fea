"""The record of a run: typed, of a known version, the same after writing and reading, one definition a number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_arch.analysis.columns import COLUMNS
from hf_arch.core.errors import ConfigError
from hf_arch.recipe.recipe import read_recipe
from hf_arch.runs.numbers import Reader
from hf_arch.runs.record import (
    NUMBERS,
    OBJECTS,
    SCHEMA_VERSION,
    RunRecord,
    numbers_for,
    read_results,
    write_config,
    write_end,
    write_results,
)
from hf_arch.runs.suite import flat_row
from tests.experiments.synthetic import write_run


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    first = RunRecord.load(write_run(tmp_path / "first", "gla", 2))
    second = tmp_path / "second"
    assert write_results(second, first.to_results())["schema_version"] == SCHEMA_VERSION
    (second / "experiment_config.json").write_text((first.path / "experiment_config.json").read_text())
    again = RunRecord.load(second)
    assert again.to_results() == first.to_results()
    assert again.numbers == first.numbers
    assert again.experiment == first.experiment


def test_a_folder_of_before_the_first_version_loads(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "gla", 1)
    assert "schema_version" not in json.loads((folder / "results.json").read_text())
    assert RunRecord.load(folder).completed


@pytest.mark.parametrize("file", ["results.json", "experiment_config.json"])
@pytest.mark.parametrize(("version", "said"), [(SCHEMA_VERSION + 1, "written by a newer hf_arch"), ("new", "expected")])
def test_a_version_that_is_not_known_is_one_line(tmp_path: Path, file: str, version: object, said: str) -> None:
    path = write_run(tmp_path, "gla", 1) / file
    values = json.loads(path.read_text())
    (values if file == "results.json" else values.setdefault("run", {}))["schema_version"] = version
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=rf"{file}: schema_version: .*{said}") as error:
        RunRecord.load(path.parent)
    assert "\n" not in str(error.value)


def test_a_number_of_another_type_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokens_seen: expected a number"):
        write_results(tmp_path / "run", {"status": "completed", "tokens_seen": "many"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["optimizer", "plugin_metrics", "components", "provenance", "model", "training", "run"])
def test_what_should_be_an_object_and_is_none_is_one_line(tmp_path: Path, key: str) -> None:
    file = "results.json" if key in OBJECTS else "experiment_config.json"
    (tmp_path / "results.json").write_text(json.dumps({"status": "completed"}))
    (tmp_path / file).write_text(json.dumps({key: [1]}))
    with pytest.raises(ConfigError, match=rf"{file}: {key}: expected an object or null, found"):
        RunRecord.load(tmp_path)
    (tmp_path / file).write_text(json.dumps({key: None}))
    assert RunRecord.load(tmp_path).config.get(key, {}) == {}


def test_keys_that_no_field_names_are_kept(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "gla", 1, results={"my_metric": {"a": 1}})
    record = RunRecord.load(folder)
    assert record.others == {"my_metric": {"a": 1}}
    assert record.to_results()["my_metric"] == {"a": 1}


def test_an_end_from_outside_keeps_what_the_run_said(tmp_path: Path) -> None:
    write_results(tmp_path, {"name": "gla", "status": "running", "steps": 3, "provenance": {"device": "cpu"}})
    write_end(tmp_path, "gla", "failed", "killed by SIGKILL", error="last lines")
    record = read_results(tmp_path)
    assert record is not None
    assert (record.status, record.steps, record.exit_reason) == ("failed", 3, "killed by SIGKILL")
    assert record.provenance["device"] == "cpu" and record.error == "last lines"
    write_end(tmp_path, "gla", "failed", "another reason", retry=False)
    again = read_results(tmp_path)
    assert again is not None and again.exit_reason == "killed by SIGKILL" and again.retry is False


def test_the_config_keeps_what_the_set_planned(tmp_path: Path) -> None:
    recipe = read_recipe({"model": {"architecture": "llama"}})
    write_config(tmp_path, recipe, {"seed": 1})
    planned = json.loads((tmp_path / "experiment_config.json").read_text())
    planned["run"] |= {"hash": "of the set", "baseline": "gpt2"}
    (tmp_path / "experiment_config.json").write_text(json.dumps(planned))
    write_config(tmp_path, recipe, {"seed": 2})
    run = RunRecord.load(tmp_path).config["run"]
    assert (run["hash"], run["baseline"], run["seed"]) == ("of the set", "gpt2", 2)
    assert run["schema_version"] == SCHEMA_VERSION


def test_every_reader_takes_its_numbers_from_the_one_definition(tmp_path: Path) -> None:
    row = flat_row(RunRecord.load(write_run(tmp_path, "gla", 1)))
    assert {number.key for number in numbers_for(Reader.ROWS)} == row.keys() & NUMBERS.keys()
    tabled = {column.key: column for column in COLUMNS}
    for number in numbers_for(Reader.TABLE):
        assert (tabled[number.key].title, tabled[number.key].help) == (number.column, number.help)
    for number in NUMBERS.values():
        assert number.words and number.show(1234.5)
