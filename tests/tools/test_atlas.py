"""The atlas holds every architecture, trains nothing twice, and its page says what the records say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import hf_arch
from hf_arch.analysis.audits.edits import check_edited
from hf_arch.analysis.comparison import Comparison
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json, write_json
from hf_arch.recipe.recipe import RUN_FACTS
from hf_arch.runs.digest import DIGEST, DIGESTS
from hf_arch.runs.files import CONFIG_FILE, RESULTS_FILE
from hf_arch.runs.record import RunRecord
from tests.experiments.synthetic import write_run
from tools import atlas, atlas_page, atlas_records


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for name in ("llama", "gla"):
        for seed in (1, 2, 3):
            write_run(folder, name, seed, hypothesis="gla better than llama")
        write_run(folder / "learning_rates", name, 4)
    write_run(folder, "mamba", 1, results={"status": "running"})
    return folder


def saved(results: Path, tmp_path: Path) -> Path:
    records = tmp_path / "records"
    atlas_records.store("text", results, records)
    return records


@pytest.mark.parametrize("task", atlas_records.TASKS)
def test_every_architecture_in_every_task(task: str) -> None:
    recipe = yaml.safe_load((atlas_records.RECIPES / f"atlas_{task}.yaml").read_text())
    # `parallel` came when the atlas was being trained; its branches are all there alone.
    assert list(recipe["experiment"]["runs"]) == sorted({*hf_arch.list_architectures()} - {"parallel"})
    for name, changes in recipe["experiment"]["runs"].items():
        assert name in (changes.get("model.architecture"), changes.get("model", {}).get("architecture"))
    assert recipe["experiment"]["seeds"] == 3
    assert recipe["experiment"]["learning_rates"]
    assert recipe.get("probe", {"task": "text"})["task"] == task


@pytest.fixture(scope="module")
def compared() -> dict[str, Comparison]:
    return atlas_page.comparisons()


@pytest.mark.rest
def test_the_page_is_that_of_the_records(compared: dict[str, Comparison]) -> None:
    assert atlas_page.PAGE.read_text(encoding="utf-8") == atlas_page.page(compared=compared), (
        "write it anew: python -m tools.atlas page"
    )


def test_the_table_of_the_readme_is_that_of_the_records(compared: dict[str, Comparison]) -> None:
    text = atlas_records.README.read_text(encoding="utf-8")
    assert text == atlas_page.fill_readme(text, compared=compared), "write it anew: python -m tools.atlas page"
    assert "| `llama` | " in text.split(atlas_page.START)[1].split(atlas_page.END)[0]


def test_the_page_names_what_else_differs(results: Path, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(results, "gla", seed, results={"short_convolution": {"layers": [0, 1]}})
    table = atlas_page.page(saved(results, tmp_path)).split("## text\n")[1]
    row = next(line for line in table.splitlines() if line.startswith("| gla "))
    assert row.endswith("short convolution |")


@pytest.mark.rest
def test_the_page_judges_all_rows_at_one_false_discovery_rate(tmp_path: Path) -> None:
    """A difference of p = 0.03 is one alone, and none among thirty that are noise."""
    results = tmp_path / "results"
    noise = {1: 0.0, 2: 0.01, 3: -0.01}

    def add(name: str, gap: float, spread: float) -> None:
        for seed in (1, 2, 3):
            write_run(results, name, seed, loss=1.5 + 0.1 * seed + gap + spread * noise[seed])

    add("llama", 0, 0)
    add("far", -0.5, 0.1)
    add("near", -0.032, 1)  # t = 5.5 of 3 seeds
    rows = {line.split(" | ")[0]: line for line in atlas_page.page(saved(results, tmp_path)).splitlines()}
    assert "| better by 0.032 [0.007, 0.057]" in rows["| near"]
    for i in range(30):
        add(f"noise{i}", 0.001 * (i % 3 - 1), 1)
    rows = {line.split(" | ")[0]: line for line in atlas_page.page(saved(results, tmp_path)).splitlines()}
    assert "| better by 0.5000 [0.4975, 0.5025]" in rows["| far"]
    assert "| undecided (-0.032 [-0.057, -0.007])" in rows["| near"]
    assert sum(" | undecided (" in row for row in rows.values()) == 31


def test_readme_without_its_comments_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"README\.md: has to hold the lines '<!-- atlas: start -->' and"):
        atlas_page.fill_readme("# hf_arch")


def test_readme_takes_no_unfinished_task(results: Path, tmp_path: Path) -> None:
    text = atlas_records.README.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="no task has all of its runs yet"):
        atlas_page.fill_readme(text, saved(results, tmp_path))


def test_records_stand_for_the_runs(results: Path, tmp_path: Path) -> None:
    records = saved(results, tmp_path)
    assert len((records / "text.jsonl").read_text().splitlines()) == 8  # what still runs is no record
    assert atlas_records.restore("text", tmp_path / "again", records) == 8
    assert atlas_records.restore("text", tmp_path / "again", records) == 0  # what is there is left alone
    for file in (tmp_path / "again").rglob(RESULTS_FILE):
        before = json.loads((results / file.relative_to(tmp_path / "again")).read_text())
        assert json.loads(file.read_text()) == {key: value for key, value in before.items() if key != "sample"}


def test_records_are_not_taken_for_edited(results: Path, tmp_path: Path) -> None:
    for folder in results.glob("llama*"):  # as a run writes it
        config = read_json(folder / CONFIG_FILE)
        write_json(folder / CONFIG_FILE, {**config, RUN_FACTS: {**config.get(RUN_FACTS, {}), DIGESTS: 1}})
        write_json(folder / RESULTS_FILE, {**read_json(folder / RESULTS_FILE), DIGEST: {"seed": "0" * 16}})
    atlas_records.restore("text", tmp_path / "again", saved(results, tmp_path))
    found = check_edited([RunRecord.load(folder) for folder in (tmp_path / "again").glob("llama*")])
    assert found is not None and found.severity == "note"


def test_records_are_kept_when_their_folders_are_gone(results: Path, tmp_path: Path) -> None:
    records = saved(results, tmp_path)
    assert atlas_records.store("text", write_run(tmp_path / "other", "mamba").parent, records) == 9


def test_records_of_other_code_are_refused(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was made by different code: to resume, check out commit 0123456789abcdef"):
        atlas_records.check_source("text", saved(results, tmp_path))


def test_page(results: Path, tmp_path: Path) -> None:
    text = atlas_page.page(saved(results, tmp_path))
    table = next(part for part in text.split("## ") if part.startswith("text\n"))
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("| ")}
    assert set(rows) == {"run", "---", "gla", "llama"}  # the sweep enters no table
    assert "| baseline | 3 | 0.001 |" in rows["llama"]
    assert rows["llama"].endswith("|  |")
    assert "- gla better than llama: **" in table
    assert "## parity\n\nNot trained yet." in text
    assert "## text\n\nNot complete: 6 of 141 compared runs are recorded, and 2 of the sweep" in text
    assert "Not complete" not in atlas_page.PAGE.read_text(encoding="utf-8").split("## parity")[1].split("## s5")[0]


def test_no_table_before_its_baseline_is_recorded(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for seed in (1, 2, 3):
        write_run(results, "gla", seed, config={"run": {"baseline": "llama"}})
    records = saved(results, tmp_path)
    with pytest.raises(ConfigError, match="no run that is compared is recorded yet"):
        atlas_page.page(records)
    write_run(results, "llama", 1, config={"run": {"baseline": "llama"}})
    atlas_records.store("text", results, records)
    assert "against llama" in atlas_page.page(records)


def test_records_of_two_recipes_are_not_mixed(results: Path, tmp_path: Path) -> None:
    records = saved(results, tmp_path)
    (results / next(iter(results.glob("gla_*"))).name).rename(results / "gla_of_another_recipe")
    atlas_records.store("text", results, records)
    with pytest.raises(ConfigError, match="are the same run of two versions of the recipe"):
        atlas_page.page(records)


def test_no_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run that is compared is recorded yet"):
        atlas_page.page(tmp_path)


def test_torn_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"folder": "a", "results": {}}\n{"fol')
    with pytest.raises(ConfigError, match=r"text\.jsonl: line 2 is not JSON"):
        atlas_records.restore("text", tmp_path / "again", tmp_path)


def test_unknown_task_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert atlas.main(["run", "parit"]) == 2
    assert "parity" in capsys.readouterr().err


def test_records_name_no_folder_of_this_machine(results: Path, tmp_path: Path) -> None:
    file = next(results.rglob(RESULTS_FILE))
    told = {
        **json.loads(file.read_text()),
        "command": f"hf-arch train {file.parent} {atlas_records.ROOT}/recipes/a.yaml",
    }
    file.write_text(json.dumps(told))
    text = (saved(results, tmp_path) / "text.jsonl").read_text()
    assert str(tmp_path) not in text and str(atlas_records.ROOT) not in text
    assert f"hf-arch train {file.parent.relative_to(results)} recipes/a.yaml" in text
