"""The recipes of full-size models: as large as they are called, launched as their head says, and small enough at
`--scale cpu` to be tried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import hf_arch
from hf_arch.experiments.planning.plan import plan_runs
from hf_arch.recipe.build import build_config
from hf_arch.recipe.recipe import load_recipe
from hf_arch.training.run import run_training

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = sorted((RECIPES / "pretrain").glob("*.yaml"))
KINDS = {"gpt2", "llama", "gqa", "mla", "gla", "mamba", "moe", "hybrid", "samba"}
BATCH = re.compile(r"batches of 8 x (?P<rows>\d+) x (?P<accumulation>\d+) x (?P<length>\d+) tokens")


def test_every_kind_of_model_has_a_recipe() -> None:
    assert {path.stem.partition("-")[0] for path in FILES} == KINDS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_model_is_as_large_as_it_is_called(path: Path) -> None:
    [run] = plan_runs(load_recipe(path)).runs
    cost = hf_arch.cost(build_config(run.recipe), run.recipe.sequence_length)
    number, unit = re.fullmatch(r"\w+-(\d+)([mb])", path.stem).groups()
    assert cost.params_total == pytest.approx(int(number) * {"m": 1e6, "b": 1e9}[unit], rel=0.03)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_head_says_what_the_recipe_does(path: Path) -> None:
    recipe = load_recipe(path)
    head = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    batch = {name: int(value) for name, value in BATCH.search(head).groupdict().items()}
    assert batch == {
        "rows": recipe.training["per_device_train_batch_size"],
        "accumulation": recipe.training["gradient_accumulation_steps"],
        "length": recipe.data.sequence_length,
    }
    [launch] = re.findall(
        r"accelerate launch --config_file recipes/accelerate/(\w+)\.yaml scripts/train\.py (\S+)", head
    )
    assert launch[1] == f"recipes/pretrain/{path.name}"
    assert yaml.safe_load((RECIPES / "accelerate" / f"{launch[0]}.yaml").read_text())["num_processes"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_small_form_trains(path: Path, text: Path, tmp_path: Path) -> None:
    overrides = [f"data.corpus={text}", "training.max_steps=12", "training.warmup_steps=2", "training.eval_steps=6"]
    overrides += ["evaluation.sequences=4", "evaluation.final_sequences=4", "training.logging_steps=1"]
    results = run_training(load_recipe(path, overrides, "cpu"), tmp_path / "run", quiet=True)
    assert results["status"] == "completed" and results["params_total"] < 1_000_000
    assert results["final_train_loss"] < 5.9  # of log 512 = 6.24 at the start
