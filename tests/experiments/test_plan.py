"""Plans: what a matrix skips and why, what is matched to what, and mistakes that end before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.experiments.planning.plan import Plan, plan_runs
from hf_arch.experiments.planning.prepare import select_run
from hf_arch.recipe.build import build_config
from hf_arch.recipe.recipe import Recipe, read_recipe

MODEL = {"architecture": "llama", "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
DATA = {"vocab_size": 512, "sequence_length": 64}


def recipe(*overrides: str, at_scale: str | None = None, **experiment: Any) -> Recipe:
    values = {"model": MODEL, "data": DATA, "experiment": {"name": "set", **experiment}}
    return read_recipe(values, overrides, at_scale)


def plan(*overrides: str, at_scale: str | None = None, **experiment: Any) -> Plan:
    return plan_runs(recipe(*overrides, at_scale=at_scale, **experiment))


def parameters(found: Plan) -> dict[str, int]:
    return {
        run.name: hf_arch.cost(build_config(run.recipe), run.recipe.sequence_length).params_total for run in found.runs
    }


def test_points_that_cannot_be_are_skipped_with_the_reason() -> None:
    found = plan(matrix={"model.num_attention_heads": [4, 5], "model.hidden_size": [96, 128]})
    assert found.names == ["set-num_attention_heads-4-hidden_size-96", "set-num_attention_heads-4-hidden_size-128"]
    assert [skipped.name for skipped in found.skipped] == [
        "set-num_attention_heads-5-hidden_size-96",
        "set-num_attention_heads-5-hidden_size-128",
    ]
    assert "num_attention_heads" in found.skipped[0].reason and "nearest" in found.skipped[0].reason


def test_a_named_run_that_cannot_be_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"experiment\.runs\.five: .*num_attention_heads"):
        plan(runs={"four": {}, "five": {"model.num_attention_heads": 5}})


def test_a_matrix_without_any_point_that_can_be_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no point of it can be run; set-num_attention_heads-5: "):
        plan(matrix={"model.num_attention_heads": [5, 7]})
    with pytest.raises(ConfigError, match=r"nearest: 'hidden_size'"):
        plan(matrix={"model.hiden_size": [64, 96]})


def test_a_matrix_may_be_nested_and_a_scale_replaces_its_values() -> None:
    matrix = {"model": {"hidden_size": [64, 96]}}
    assert plan(matrix=matrix).names == ["set-hidden_size-64", "set-hidden_size-96"]
    scale = {"cpu": {"experiment": {"matrix": {"model": {"hidden_size": [32]}}, "seeds": 2}}}
    small = plan(at_scale="cpu", matrix=matrix, scale=scale)
    assert [run.name for run in small.runs] == ["set-hidden_size-32"] * 2
    assert [run.recipe.training["seed"] for run in small.runs] == [1, 2]
    assert len(plan("experiment.seeds=3", at_scale="cpu", matrix=matrix, scale=scale).runs) == 3


def test_values_of_a_matrix_may_be_named() -> None:
    mixers = [{"name": "plain", "value": "gla"}, {"name": "conv", "value": {"type": "gla", "use_short_conv": True}}]
    found = plan(matrix={"model.mixer": mixers, "model.hidden_size": [64, 96]})
    assert found.names == [
        "set-plain-hidden_size-64", "set-plain-hidden_size-96", "set-conv-hidden_size-64", "set-conv-hidden_size-96",
    ]  # fmt: skip
    assert [run.config.mixer_specs[0][1].use_short_conv for run in found.runs] == [False, False, True, True]
    assert found.runs[0].recipe.model["mixer"] == "gla"


@pytest.mark.parametrize(
    "matrix",
    [
        {"model.mixer": [{"name": "a", "value": "gla"}, {"name": "a", "value": "attention"}]},
        {"model.mixer": [{"name": "no gate", "value": "gla"}, {"name": "no_gate", "value": "attention"}]},
        {"model.mixer": [{"type": "gla", "expand_k": 0.5}, {"type": "gla", "expand_k": "0.5"}]},
        {"model.hidden_size": [64, 64]},
        {"model.mixer": [{"name": "a-b", "value": "gla"}, {"name": "a", "value": "mamba"}],
         "model.ffn": [{"name": "c", "value": "glu"}, {"name": "b-c", "value": "mlp"}]},
    ],
)  # fmt: skip
def test_two_points_of_one_name_are_an_error(matrix: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="would both be called 'set-"):
        plan(matrix=matrix)


@pytest.mark.parametrize("name", [3, "", "  ", "--", None])
def test_the_name_of_a_value_is_text(name: object) -> None:
    with pytest.raises(ConfigError, match=r"experiment\.matrix\.model\.mixer: name: expected text"):
        plan(matrix={"model.mixer": [{"name": name, "value": "gla"}]})


def test_runs_whose_names_become_the_same_are_an_error() -> None:
    with pytest.raises(ConfigError, match="'a b' and 'a_b' would both be called 'a_b'"):
        plan(runs={"a b": {}, "a_b": {}})


def test_a_scale_changes_one_value_of_one_run() -> None:
    runs = {"one": {"model.hidden_size": 128, "training.max_steps": 9}, "two": None}
    scale = {"cpu": {"model": {"hidden_size": 32}, "experiment": {"runs": {"one": {"model": {"hidden_size": 64}}}}}}
    one, two = (run.recipe for run in plan(at_scale="cpu", runs=runs, scale=scale).runs)
    assert (one.model["hidden_size"], one.training) == (64, {"max_steps": 9})
    assert two.model["hidden_size"] == 32


def test_runs_are_matched_to_the_reference_at_their_own_point() -> None:
    found = plan(
        runs={"llama": {}, "gla": {"model.architecture": "gla"}},
        matrix={"model.hidden_size": [64, 128], "training.learning_rate": [1e-3, 1e-2]},
        match={"by": "parameters"},
    )
    sizes = parameters(found)
    assert len(sizes) == 8
    for width in (64, 128):
        of_width = [size for name, size in sizes.items() if f"hidden_size-{width}" in name]
        assert max(of_width) / min(of_width) <= 1.01
    assert max(sizes.values()) > 2 * min(sizes.values())


def test_matching_keeps_reference_and_says_the_residual() -> None:
    found = plan(runs={"llama": {}, "mlp": {"model.ffn": "mlp"}}, match="flops")
    reference, other = (run.matched for run in found.runs)
    assert reference is not None and other is not None
    assert reference.changes == {} and reference.residual == 0
    assert abs(other.residual) <= 0.01
    assert "training FLOPs per token" in other.describe() and "from the reference" in other.describe()


@pytest.mark.rest
def test_what_cannot_be_matched_is_an_error_or_a_skipped_point() -> None:
    runs = {"llama": {}, "deep": {"model.num_hidden_layers": 60}}
    with pytest.raises(ConfigError, match="run 'deep' comes to"):
        plan(runs=runs, match={"by": "parameters", "vary": "intermediate_size"})
    found = plan(matrix={"model.num_hidden_layers": [2, 3, 60]}, match={"vary": "intermediate_size"})
    assert found.names == ["set-num_hidden_layers-2", "set-num_hidden_layers-3"]
    assert "comes to" in found.skipped[0].reason


@pytest.mark.parametrize("override", ["training.seed=3", "model.hidden_size=9"])
def test_what_a_set_varies_cannot_be_overridden(override: str) -> None:
    with pytest.raises(ConfigError, match="the recipe varies it"):
        plan(override, matrix={"model.hidden_size": [64, 96]}, seeds=2)


def test_the_advice_for_one_run_of_a_set_is_accepted(tmp_path: Path) -> None:
    def choose(run: str | None, *overrides: str) -> Recipe:
        return select_run(recipe(*overrides, runs={"a": {}, "b": {}}, seeds=[4, 5]), run, str(tmp_path))[0]

    with pytest.raises(ConfigError, match=r"--run: the recipe declares 2 runs; .* choose one: a, b$"):
        choose(None)
    with pytest.raises(
        ConfigError, match=r"experiment.seeds: run 'a' has 2; .* choose one by (experiment.seeds=\[4\]): 4, 5$"
    ):
        choose("a")
    assert choose("a", "experiment.seeds=[4]").training["seed"] == 4
