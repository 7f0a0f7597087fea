"""Ladders: sizes and budgets as asked for, one trunk a size, and branches that equal runs from step 0 bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_json
from hf_arch.experiments.execution import runner
from hf_arch.experiments.execution.ladder import train_ladder
from hf_arch.experiments.planning.ladder import lay_out_ladder
from hf_arch.experiments.planning.prepare import PreparedSet, ReadyRun, prepare_set, select_run
from hf_arch.recipe.build import build_config
from hf_arch.recipe.recipe import Recipe, load_recipe, read_recipe
from hf_arch.training.run import run_training
from hf_arch.training.trainer import ArchTrainer
from hf_arch.training.trunk import BranchPoints
from tests.training.tiny import recipe_values, write_text

FITTED = {"sizes": [6000, 20000], "tokens_per_parameter": [1, 2], "rule": "fitted"}
LADDER = {"sizes": [6000, 20000], "tokens_per_parameter": [0.1, 0.25]}
# Of a run's results: how fast and when it was trained, and where.
OF_THE_MACHINE = (
    *("wall_seconds", "machine_load", "provenance", "train_tokens_per_second", "prefill_tokens_per_second"),
    *("mfu", "decode_tokens_per_second", "peak_memory_bytes", "name", "launch", "digest"),
)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "cache"))
    return write_text(tmp_path)


def recipe(text: Path, *overrides: str, training: dict[str, Any] | None = None, **experiment: Any) -> Recipe:
    values = recipe_values(text)
    for key in ("max_steps", "save_steps"):
        del values["training"][key]
    values["training"] |= {"warmup_steps": 0.2, "seed": 1, **(training or {})}
    values["training"] = {key: value for key, value in values["training"].items() if value is not None}
    values["experiment"] = {"name": "ladder", "ladder": LADDER, **experiment}
    return read_recipe(values, overrides)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trains in this process; how many steps each run computed, in their order."""
    computed: list[int] = []
    step = ArchTrainer.training_step

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        computed[-1] += 1
        return step(self, *args, **kwargs)

    def train(prepared: PreparedSet, results_dir: Path, options: runner.RunOptions) -> list[ReadyRun]:
        for run in prepared.runs:
            if run.status != "completed":
                computed.append(0)
                run.write_config()
                run_training(load_recipe(run.folder / "experiment_config.json"), run.folder, resume=True, quiet=True)
        return []

    monkeypatch.setattr(ArchTrainer, "training_step", counted)
    monkeypatch.setattr("hf_arch.experiments.execution.ladder.train_set", train)
    return computed


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "model").glob("*.safetensors")))


@pytest.mark.rest
def test_no_step_is_trained_twice_and_a_branch_is_the_run_from_step_0(
    tmp_path: Path, text: Path, steps: list[int]
) -> None:
    asked, results = recipe(text), tmp_path / "results"
    trained = train_ladder(asked, results, runner.RunOptions())
    prepared, failed = trained.prepared, trained.failed
    assert not failed and len(prepared.runs) == 4
    by_name = {run.name: run for run in prepared.runs}
    trunk, branch = by_name["ladder-20k-0.25x"], by_name["ladder-20k-0.1x"]
    facts = {name: run.config["run"] for name, run in by_name.items()}
    decays = {name: run.steps - facts[name]["ladder"]["branch_step"] for name, run in by_name.items() if run.steps}
    assert steps == [
        by_name["ladder-6k-0.25x"].steps, trunk.steps, decays["ladder-6k-0.1x"], decays["ladder-20k-0.1x"]
    ]  # fmt: skip
    assert facts[branch.name]["branch"] == {
        "folder": f"../{trunk.folder.name}",
        "step": branch.steps - decays[branch.name],
    }
    train_ladder(asked, results, runner.RunOptions())
    assert len(steps) == 4  # all finished

    alone = tmp_path / "alone"
    steps.append(0)
    run_training(load_recipe(branch.folder / "experiment_config.json"), alone, quiet=True)
    assert steps[-1] == branch.steps
    ours, theirs = weights(branch.folder), weights(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    read = [json.loads((folder / "results.json").read_text()) for folder in (branch.folder, alone)]
    for values in read:
        for key in OF_THE_MACHINE:
            values.pop(key, None)
    seen = [values["unseen"]["given"] for values in read]
    for given in seen:  # rows in training: a branch is given those after the trunk's alone
        del given["training"]
    assert [given.pop("from") for given in seen] == [branch.steps - decays[branch.name], 0]
    assert read[0] == read[1]
    curves = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (branch.folder, alone)]
    numbers = [
        [{key: row.get(key) for key in ("step", "loss", "val_loss", "learning_rate", "grad_norm")} for row in rows]
        for rows in ([json.loads(line) for line in lines] for lines in curves)
    ]
    assert numbers[0] == numbers[1]
    rates = [row["learning_rate"] for row in numbers[0] if row["learning_rate"] is not None]
    assert rates[-1] < max(rates)


@pytest.mark.rest
def test_a_trunk_that_is_another_run_is_refused_and_one_without_a_checkpoint_is_said(
    tmp_path: Path, text: Path, steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    ladder = {"sizes": [6000], "tokens_per_parameter": [0.1, 0.25]}
    prepared = train_ladder(recipe(text, ladder=ladder), tmp_path / "results", runner.RunOptions()).prepared
    branch = next(run for run in prepared.runs if "branch" in run.config["run"])
    for change, words in (({"training": {"seed": 2}}, "training.seed"), ({"training": {"warmup_steps": 0}}, "warmup")):
        other = tmp_path / "results" / words
        config = {**branch.config, "training": {**branch.config["training"], **change["training"]}}
        write_json(other / "experiment_config.json", config)
        with pytest.raises(ConfigError, match=f"is another run than this one until step.*{words}"):
            run_training(load_recipe(other / "experiment_config.json"), other, resume=True, quiet=True)
    elsewhere = tmp_path / "elsewhere" / branch.folder.name
    write_json(elsewhere / "experiment_config.json", branch.config)
    steps.append(0)
    run_training(load_recipe(elsewhere / "experiment_config.json"), elsewhere, resume=True, quiet=True)
    assert steps[-1] == branch.steps
    assert "keeps no checkpoint of step" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["llama", "gla", "mamba"])
def test_sizes_are_reached_and_every_run_of_a_rung_has_the_same_tokens(text: Path, architecture: str) -> None:
    asked = recipe(text, runs={architecture: {"model.architecture": architecture}}, ladder=FITTED,
                   training={"learning_rate": None})  # fmt: skip
    laid_out, facts = lay_out_ladder(asked)
    assert list(laid_out.experiment.runs) == [f"{architecture}-{size}-{times}x" for size in ("6k", "20k")
                                              for times in ("1", "2")]  # fmt: skip
    for entry in facts.values():
        ladder = entry["ladder"]
        assert ladder["parameters"] == pytest.approx(ladder["size"], rel=0.25)
        rows = 2048 * 160 * (ladder["size"] / 108e6) ** (2 / 3) / 32
        assert ladder["tokens"] == pytest.approx(ladder["size"] * ladder["tokens_per_parameter"], abs=0.6 * 32 * rows)
    single = laid_out.single("one", laid_out.experiment.runs[f"{architecture}-20k-2x"] or {})
    training = single.training
    rows = 2048 * 160 * (20000 / 108e6) ** (2 / 3) / 32
    got = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    assert got == pytest.approx(rows, rel=0.05)
    assert training["learning_rate"] == pytest.approx(0.0047 / 2 * (20000 / 108e6) ** (-1 / 3), rel=1e-3)


@pytest.mark.parametrize("size", [10_000, 17_800])
def test_runs_of_one_size_have_one_width_and_so_one_embedding(text: Path, size: int) -> None:
    """At 10,000 parameters the width nearest to the size would be another for each, and the totals 7 % apart."""
    runs = {"llama": {"model.architecture": "llama"}, "gla": {"model": {"architecture": "gla", "mixer": "gla"}}}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    overrides = [f"model.{key}={value}" for key, value in {**shape, "tie_word_embeddings": True}.items()]
    ladder = {"sizes": [size], "tokens_per_parameter": [1, 2]}
    laid_out, _ = lay_out_ladder(recipe(text, *overrides, runs=runs, ladder=ladder))
    configs = [build_config(laid_out.single(name, changes or {})) for name, changes in laid_out.experiment.runs.items()]
    assert len({config.hidden_size for config in configs}) == 1
    totals = [hf_arch.cost(config, 64).params_total for config in configs]
    assert max(totals) / min(totals) - 1 <= 0.01


@pytest.mark.parametrize("rule", ["mup", "completep"])
def test_rules_by_width_and_depth_have_the_recipes_own_model_as_their_base(text: Path, rule: str) -> None:
    laid_out, _facts = lay_out_ladder(recipe(text, ladder={**LADDER, "sizes": [20000, 80000], "rule": rule}))
    layers = set()
    for changes in laid_out.experiment.runs.values():
        model = laid_out.single("one", changes or {}).model
        assert model["parametrization"]["type"] == rule
        assert model["parametrization"]["base_width"] == 32
        assert model["parametrization"].get("base_depth") == (2 if rule == "completep" else None)
        layers.add(model.get("num_hidden_layers", 2))
    assert layers == {2} if rule == "mup" else len(layers) > 1


def test_a_range_of_sizes_has_equal_ratios(text: Path) -> None:
    options = recipe(text, ladder={"sizes": {"from": 1e4, "to": 1e6, "steps": 3}}).experiment.ladder
    assert options is not None and options.sizes == (1e4, 1e5, 1e6)


@pytest.mark.parametrize(
    "ladder, training, words",
    [
        ({"sizes": []}, {}, r"experiment\.ladder\.sizes: expected numbers above 0"),
        ({"sizes": [-1]}, {}, "expected numbers above 0"),
        ({"sizes": {"from": 10, "to": 5, "steps": 3}}, {}, r"experiment\.ladder\.sizes\.to: expected more than"),
        ({"sizes": {"from": 10, "till": 5}}, {}, r"experiment\.ladder\.sizes.*'till'"),
        ({"sizes": [1e4], "rule": "chinchilla"}, {}, r"experiment\.ladder\.rule: 'chinchilla' is not known"),
        ({"sizes": [1e4], "decay": 1.5}, {}, r"experiment\.ladder\.decay: expected a share"),
        ({"sizes": [6000, 6001]}, {}, "come to the same model"),
        ({"sizes": [6000], "tokens_per_parameter": [0.1, 0.1001]}, {}, "too few to distinguish budgets"),
        (
            {"sizes": [6000], "tokens_per_parameter": [0.25]},
            {"warmup_steps": 500},
            r"training\.warmup_steps: 500 are more",
        ),
        ({"sizes": [6000]}, {"max_steps": 5}, r"training\.max_steps: not together with experiment\.ladder"),
        ({"sizes": [6000], "rule": "fitted"}, {}, r"training\.learning_rate: not together with experiment\.ladder"),
    ],
)
def test_mistakes_are_one_line(
    text: Path, tmp_path: Path, ladder: dict[str, Any], training: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        prepare_set(recipe(text, training=training, ladder=ladder), tmp_path / "results")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_a_ladder_is_not_laid_over_other_sweeps_nor_trained_one_by_one(text: Path) -> None:
    with pytest.raises(ConfigError, match=r"experiment\.ladder: not together with experiment\.matrix"):
        recipe(text, matrix={"training.seed": [1, 2]})
    with pytest.raises(ConfigError, match="is trained by `hf-arch run`"):
        select_run(recipe(text), None, None)


def test_an_override_is_of_the_shape_and_not_of_every_size(text: Path) -> None:
    laid_out, _facts = lay_out_ladder(recipe(text, "model.num_attention_heads=4", "training.weight_decay=0.3"))
    for changes in laid_out.experiment.runs.values():
        single = laid_out.single("one", changes or {})
        assert single.training["weight_decay"] == 0.3
        assert single.model["hidden_size"] // single.model["num_attention_heads"] == 8


def test_a_trunk_cut_off_after_saving_keeps_the_checkpoint_when_it_goes_on(tmp_path: Path) -> None:
    write_json(tmp_path / "experiment_config.json", {"run": {"branch_points": [3]}})
    write_json(tmp_path / "checkpoints" / "checkpoint-3" / "trainer_state.json", {"global_step": 3})
    for step in (2, 3):
        state = TrainerState(global_step=step, is_world_process_zero=True)
        BranchPoints(tmp_path).on_train_begin(TrainingArguments(output_dir=str(tmp_path)), state, TrainerControl())
        assert (tmp_path / "branches" / "checkpoint-3" / "trainer_state.json").is_file() == (step == 3)
