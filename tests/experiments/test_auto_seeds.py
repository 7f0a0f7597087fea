"""Seeds that are added while a claim is undecided: how many are trained, what the report says, and that it resumes."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.cli.run import run_recipe
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_json
from hf_arch.experiments.execution.runner import RunOptions
from hf_arch.recipe.recipe import Recipe, read_recipe
from hf_arch.recipe.seeds import AutoSeeds
from hf_arch.runs.registration import read_entries
from tests.report.text import comparison_text

MODEL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "ffn": "none"}
CONTROLLED = {"gla": {"model.architecture": "gla"}, "mamba": {"model.architecture": "mamba"}}
CLAIM = "gla better than llama"


def values(seeds: Any, hypothesis: str = CLAIM, **experiment: Any) -> dict[str, Any]:
    runs = {name: {"model.architecture": name} for name in ("llama", "gla")}
    given = {"name": "set", "hypothesis": hypothesis, "seeds": seeds, "runs": runs, **experiment}
    return {"model": MODEL, "probe": {"task": "parity"}, "training": {"max_steps": 1}, "experiment": given}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """In place of training: accuracies about `gap` apart, with noise; which runs were trained."""
    told: dict[str, Any] = {"gap": 0.2, "noise": 0.01, "done": [], "stop_after": None}

    def train(prepared: Any, _folder: Path, _options: RunOptions) -> list[Any]:
        for run in prepared.runs:
            if run.status == "completed":
                continue
            if told["stop_after"] is not None and len(told["done"]) >= told["stop_after"]:
                raise KeyboardInterrupt
            name, seed = run.config["model"]["architecture"], run.config["training"]["seed"]
            accuracy = 0.6 + (told["gap"] if name == "gla" else 0.0)
            accuracy += random.Random(f"{name}-{seed}").gauss(0, told["noise"])
            numbers = {"accuracy": accuracy, "final_val_loss": 1 - accuracy, "wall_seconds": 90.0}
            write_json(run.folder / "experiment_config.json", run.config)
            facts = {"name": run.name, "status": "completed", "seed": seed}
            write_json(run.folder / "results.json", {**facts, "architecture": name, **numbers})
            told["done"].append((run.name, seed))
        return []

    for module in ("sets", "rates"):
        monkeypatch.setattr(f"hf_arch.experiments.execution.{module}.train_set", train)
    return told


def run(folder: Path, recipe: dict[str, Any], **options: Any) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    run_recipe(file, folder / "results", RunOptions(), **options)
    return folder / "results"


def seeds_of(results: Path) -> int:
    return len(list(results.glob("gla_*")))


@pytest.mark.parametrize(
    ("written", "plan"),
    [
        ("auto", AutoSeeds(3, 8)),
        ({"most": 5}, AutoSeeds(3, 5)),
        ({"least": 2, "most": 4}, AutoSeeds(2, 4)),
        ({"auto": True, "from": 4, "most": 6}, AutoSeeds(4, 6)),
    ],
)
def test_seeds_may_be_written_in_several_ways(written: Any, plan: AutoSeeds) -> None:
    recipe = read_recipe(values(written))
    assert recipe.experiment.seeds == plan
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert read_recipe(values(written), ["experiment.seeds=[1, 2]"]).experiment.seeds == (1, 2)
    assert read_recipe(values(3), ["experiment.seeds=auto"]).experiment.seeds == AutoSeeds()


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("automatic", "experiment.seeds"),
        ({"least": 1}, "experiment.seeds.least: expected at least 2, got 1"),
        ({"least": 5, "most": 5}, "experiment.seeds.most: expected above least"),
        ({"most": 99}, "experiment.seeds.most"),
        ({"auto": False}, "experiment.seeds.auto"),
        ({"from": 3, "least": 3}, "are the same"),
        ({"until": 5}, "until"),
    ],
)
def test_wrong_seeds_are_one_line(written: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        read_recipe(values(written))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("more", [{"matrix": {"training.learning_rate": [0.1]}}])
def test_rates_that_choose_themselves_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"auto does not go together .* use experiment.learning_rates"):
        read_recipe(values("auto", **more))


def test_without_a_claim_there_is_nothing_to_decide(tmp_path: Path, trained: dict[str, Any]) -> None:
    for hypothesis in ("gates help", "", "rwkv better than mamba"):
        for dry_run in (True, False):
            with pytest.raises(ConfigError, match="auto needs a claim"):
                run(tmp_path, values("auto", hypothesis), dry_run=dry_run)
    assert not (tmp_path / "results").exists() and not trained["done"]


def test_seeds_end_when_the_claim_is_decided(
    tmp_path: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(tmp_path, values("auto"))
    said = capsys.readouterr()
    count = seeds_of(results)
    assert 3 <= count < 8 and f"seeds: {count} of at most 8: every claim is decided" in said.err
    [verdict] = compare_runs(results).verdicts
    assert verdict.statistics == "supported" and verdict.p_adjusted is not None and verdict.p_adjusted <= 0.05
    assert f"at the look after {count} of at most 8 seeds" in verdict.evidence
    assert "are spent by the looks at 3, 4, 5, 6, 7, 8 seeds" in " ".join(said.out.split())
    assert read_entries(results)[0].most_seeds == 8 and len(read_entries(results)) == 1
    before = list(trained["done"])
    run(tmp_path, values("auto"))  # again: nothing to do
    assert trained["done"] == before


def test_no_difference_takes_all_seeds_and_stays_undecided(tmp_path: Path, trained: dict[str, Any]) -> None:
    trained["gap"] = 0.0
    results = run(tmp_path, values({"least": 3, "most": 5}))
    assert seeds_of(results) == 5
    [verdict] = compare_runs(results).verdicts
    assert verdict.outcome == "undecided" and "at the look after 5 of at most 5 seeds" in verdict.evidence
    assert comparison_text(compare_runs(results), 100)


def test_a_set_that_was_cut_off_goes_the_same_way(tmp_path: Path, trained: dict[str, Any]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    trained["noise"] = 0.04
    run(whole, values("auto"))
    expected = sorted(trained["done"])
    trained["done"] = []
    for stop in (3, 7):
        trained["stop_after"] = stop
        if stop < len(expected):
            with pytest.raises(KeyboardInterrupt):
                run(cut, values("auto"))
    trained["stop_after"] = None
    run(cut, values("auto"))
    assert sorted(trained["done"]) == expected
    assert compare_runs(whole / "results").verdicts[0].p_value == compare_runs(cut / "results").verdicts[0].p_value


def test_rates_are_chosen_once_on_seeds_that_no_look_uses(tmp_path: Path, trained: dict[str, Any]) -> None:
    results = run(tmp_path, values({"most": 5}, learning_rates=[1e-3, 3e-3, 1e-2]))
    sweep = [json.loads(file.read_text())["seed"] for file in results.glob("learning_rates/*/results.json")]
    assert set(sweep) == {6}
    assert 3 <= seeds_of(results) <= 5


def test_a_dry_run_says_the_range(tmp_path: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = r"seeds: 3 to 8, as the claims need: 6 to 16 runs, \S+ to \S+ FLOPs, ([\d.e-]+) to ([\d.e-]+) hours"
    for finished in (False, True):
        if finished:
            run(tmp_path, values("auto"))
            capsys.readouterr()
        run(tmp_path, values("auto"), dry_run=True)
        printed = " ".join(capsys.readouterr().out.split())
        found = re.search(words, printed)
        assert found is not None, printed
        assert float(found[2]) == pytest.approx(float(found[1]) * 8 / 3, rel=0.02)


def test_controls_get_the_same_seeds(tmp_path: Path, trained: dict[str, Any]) -> None:
    results = run(tmp_path, values("auto", "mamba better than gla", runs=CONTROLLED), controls=True)
    groups = {group.name: len(group.counted) for group in compare_runs(results).groups}
    assert len(groups) > 2 and len(set(groups.values())) == 1
    assert compare_runs(results).controls


def test_matched_runs_get_seeds_as_needed(tmp_path: Path, trained: dict[str, Any]) -> None:
    results = run(tmp_path, values("auto", match={"by": "parameters", "tolerance": 0.1}))
    assert seeds_of(results) >= 3
