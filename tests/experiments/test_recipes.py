"""The recipes of the repository: each can be planned at every scale, at sizes that exist, with claims to be judged."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

import hf_arch
from hf_arch.analysis.verdicts import CLAIM
from hf_arch.cli.run import run_recipe
from hf_arch.experiments.execution.runner import RunOptions
from hf_arch.experiments.planning.plan import Plan, plan_runs
from hf_arch.recipe.build import build_config
from hf_arch.recipe.recipe import Recipe, load_recipe
from hf_arch.runs.suite import find_runs

RECIPES = Path(__file__).parents[2] / "recipes"
EXPERIMENTS = sorted((RECIPES / "experiments").glob("*.yaml"))
EVERY = sorted(
    path for folder in ("experiments", "anchors", "probes", "tutorial") for path in (RECIPES / folder).glob("*.yaml")
)
NAMED = {
    "baseline": {"baseline_small", "baseline_medium", "baseline_large"},
    "attention": {
        "attention_gla", "attention_gla_no_gating", "attention_retnet", "attention_mamba", "attention_based",
        "attention_deltanet", "attention_hgrn", "attention_rwkv6", "attention_gsa",
    },
    "architecture": {"arch_wide_gla", "arch_deep_gla", "arch_many_heads_gla", "arch_expansion_test"},
    "training": {"train_long_context", "train_high_lr", "train_low_dropout", "train_more_data"},
    "efficiency": {
        "efficiency_standard_512", "efficiency_gla_512", "efficiency_standard_1024", "efficiency_gla_1024",
        "efficiency_mamba_2048",
    },
    "heads": {"heads_5", "heads_8", "heads_12", "heads_16"},
    "depth": {"depth_shallow", "depth_medium", "depth_deep"},
    "variants": {"variant_current", "variant_A", "variant_B", "variant_C"},
}  # fmt: skip


def scales(path: Path) -> list[str | None]:
    return [None, *(yaml.safe_load(path.read_text())["experiment"].get("scale") or {})]


@cache
def plans(path: Path) -> list[tuple[Recipe, Plan]]:
    recipes = [load_recipe(path, scale=scale) for scale in scales(path)]
    return [(recipe, plan_runs(recipe)) for recipe in recipes if not recipe.experiment.sets]


def assert_names_and_claims(path: Path) -> None:
    """A set has its named runs, a small form, and claims about its own runs."""
    for recipe, plan in plans(path):
        declared = {run.declared for run in plan.runs}
        assert NAMED.get(path.stem, set()) <= declared
        assert "cpu" in recipe.experiment.scale
        claimed = {
            match[side] for match in CLAIM.finditer(recipe.experiment.hypothesis) for side in ("first", "second")
        }
        assert claimed <= declared
        assert claimed or path.stem in ("search", "heads_demo")


MANY_RUNS = ("delta_family", "attention", "components", "architecture")
"""Sets whose models take longest to be made equal."""
FEW_RUNS_FIRST = [
    pytest.param(path, id=f"{path.parent.name}-{path.stem}", marks=pytest.mark.slow if path.stem in MANY_RUNS else ())
    for path in EVERY
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("path", FEW_RUNS_FIRST)
def test_a_recipe_can_be_planned_at_every_scale(path: Path) -> None:
    head = path.read_text().splitlines()
    assert head[0].startswith("# Question: ") and any(line.startswith("# Cost: ") for line in head)
    for recipe, plan in plans(path):
        assert recipe.experiment.hypothesis and recipe.experiment.description and recipe.experiment.name
        for run in plan.runs:
            assert hf_arch.cost(build_config(run.recipe), run.recipe.sequence_length).params_total > 0
    if path in EXPERIMENTS:  # here, because planning takes seconds and another worker would plan anew
        assert_names_and_claims(path)


def test_all_names_every_set() -> None:
    sets = set(load_recipe(RECIPES / "experiments" / "all.yaml").experiment.sets)
    assert sets == {path.name for path in EXPERIMENTS} - {"all.yaml", "heads_demo.yaml"}


def test_the_search_covers_its_grid_and_skips_what_cannot_be() -> None:
    full, small = (plan for _recipe, plan in plans(RECIPES / "experiments" / "search.yaml"))
    assert len(full.runs) == 18 and not full.skipped
    assert len(small.runs) == 10 and all("head_dim" in skipped.reason for skipped in small.skipped)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_set_trains_at_the_small_scale(path: Path, tmp_path: Path) -> None:
    """A few steps of every run, one seed each; with one fixed text, so that nothing is fetched."""
    if load_recipe(path).experiment.sets:
        pytest.skip("the sets are tested one by one")
    overrides = ("data.corpus=python-docs", "training.max_steps=4", "training.warmup_steps=1")
    if load_recipe(path).experiment.ladder:  # which makes the steps itself
        overrides = ("data.corpus=python-docs", "experiment.ladder={sizes: [8000], tokens_per_parameter: [0.3, 0.6]}")
    overrides += ("evaluation.final_sequences=8", "evaluation.sequences=4", "experiment.seeds=[1]")
    assert run_recipe(path, tmp_path, RunOptions(), scale="cpu", overrides=overrides) == 0
    runs = find_runs(tmp_path)
    assert runs and all(run.completed for run in runs)
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "experiment_suite_results.json").is_file()
    assert (tmp_path / "all_benchmark_results.json").is_file()
