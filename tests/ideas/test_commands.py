"""Five ideas that no part of a model holds, each one plugin file of less than 60 lines: every command takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_arch.cli import app
from hf_arch.core.plugins import separate_plugins
from hf_arch.runs.suite import find_runs
from tests.training.tiny import recipe_values, write_text

IDEAS = Path(__file__).parent
NAMES = ("lion", "one_minus_sqrt", "orthogonal", "repetition", "tokens_per_parameter")


def words_of(capsys: Any, *words: str) -> str:
    with separate_plugins(), pytest.raises(SystemExit) as end:
        app(list(words))
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    return printed.out


def test_the_files_are_short() -> None:
    assert {path.stem for path in IDEAS.glob("*.py")} == {*NAMES, "test_commands", "test_walk"}
    assert all(len((IDEAS / f"{name}.py").read_text().splitlines()) < 60 for name in NAMES)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMES)
def test_check_takes_a_file(name: str, capsys: Any) -> None:
    assert "idea_" in words_of(capsys, "check", str(IDEAS / f"{name}.py"))


@pytest.mark.rest
def test_every_command_takes_them_together(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "cache"))
    values = recipe_values(
        write_text(tmp_path),
        model={"init": "idea_orthogonal", "plugins": [str(IDEAS / f"{name}.py") for name in NAMES]},
        training={
            "optim": "idea_lion",
            "lr_scheduler_type": "idea_one_minus_sqrt",
            "learning_rate": 0.002,
            "max_steps": 3,
        },
        evaluation={"metrics": ["idea_repetition"], "speed": False, "new_tokens": 1},
        experiment={
            "name": "ideas",
            "hypothesis": "lion at most 0.9.",
            "seeds": [1],
            "metric": "idea_repetition",
            "columns": ["idea_tokens_per_parameter"],
            "runs": {"lion": {}, "adamw": {"training": {"optim": "adamw_torch"}}},
        },
    )
    Path("ideas.yaml").write_text(yaml.safe_dump(values))
    assert "idea_repetition" not in words_of(capsys, "run", "ideas.yaml", "--dry-run", "--results-dir", "results")
    words_of(capsys, "run", "ideas.yaml", "--results-dir", "results")
    [suite] = {path.parent.parent for path in Path("results").rglob("results.json")}
    runs = {(run.name, run.seed): run for run in find_runs(suite) if run.completed}
    assert set(runs) == {("lion", 1), ("adamw", 1)}
    lion, adamw = runs["lion", 1], runs["adamw", 1]
    kept = {path.name for path in (lion.path / "plugins").iterdir()}
    assert kept == {f"{name}.py" for name in NAMES}
    assert {path.name for path in (adamw.path / "plugins").iterdir()} == kept - {"lion.py"}
    assert lion.optimizer and lion.optimizer["class"] == "LionSteps"
    assert lion.init_fingerprint == adamw.init_fingerprint

    document = json.loads(words_of(capsys, "compare", str(suite), "--json"))
    assert document["metric"] == "idea_repetition"
    assert {row["idea_tokens_per_parameter"] for row in document["groups"]} == {3 * 4 * 32 / lion.params_total}
    assert [verdict["claim"] for verdict in document["hypotheses"]] == ["lion at most 0.9"]
    assert "tokens/param" in words_of(capsys, "compare", str(suite), "--metric", "final_val_loss")
    words_of(capsys, "report", str(suite))
    page = (suite / "report.html").read_text()
    assert "repeated" in page and "tokens/param" in page

    info = words_of(capsys, "info", str(lion.path))
    assert "orthogonal" in info
    scores = json.loads(words_of(capsys, "eval", str(lion.path), "--tasks", "perplexity,idea_repetition", "--json"))
    assert 0 <= scores["results"]["idea_repetition"]["idea_repetition"] <= 1
    assert words_of(capsys, "generate", str(lion.path), "--prompt", "the ")
    words_of(capsys, "export", str(lion.path), "--format", "hub", "--output", "exported")
    card = Path("exported/README.md").read_text()
    assert "repeated predictions" in card and "tokens/param" in card
    assert list(Path("exported").glob("plugin_orthogonal.py")) and not list(Path("exported").glob("plugin_lion.py"))
