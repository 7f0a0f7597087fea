"""Recipes: what is read is what was written, and every mistake is one line that names the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.experiments.planning.plan import plan_runs
from hf_arch.recipe.recipe import Recipe, load_recipe, read_recipe, set_dotted

BASE = """
model: {architecture: llama, hidden_size: 32}
training: {max_steps: 10}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "some_name.yaml"
    path.write_text(text)
    return path


def test_sections_are_typed(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, BASE + "data: {corpus: x.txt, sequence_length: 64}\nexperiment: {seeds: [1, 2]}")
    )
    assert recipe.model == {"architecture": "llama", "hidden_size": 32}
    assert (recipe.data.corpus, recipe.data.sequence_length) == ("x.txt", 64)
    assert recipe.training == {"max_steps": 10}
    assert recipe.experiment.seeds == (1, 2)
    assert recipe.experiment.name == "some_name"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.learning_rate=1e-3", "learning_rate", 1e-3),
        ("training.learning_rate=2", "learning_rate", 2.0),
        ("training.learning_rate='1e-3'", "learning_rate", 1e-3),
        ("training.max_steps=1e3", "max_steps", 1000),
        ("training.torch_compile=true", "torch_compile", True),
        ("training.lr_scheduler_type=cosine", "lr_scheduler_type", "cosine"),
        ("training.lr_scheduler_kwargs={min_lr_rate: 0.1}", "lr_scheduler_kwargs", {"min_lr_rate": 0.1}),
        ("training.precision=bf16", "precision", "bf16"),
        ("training.eval_strategy=no", "eval_strategy", "no"),
    ],
)
def test_overrides_carry_their_yaml_type(tmp_path: Path, override: str, key: str, value: object) -> None:
    got = load_recipe(write(tmp_path, BASE), [override]).training[key]
    assert got == value
    assert type(got) is type(value)


MISTAKES = [
    ("model: {architecture: llama}\nmodle: {}", "recipe: unknown key 'modle'; nearest: 'model'"),
    ("model: {hidden_size: 3}", "model.architecture: is missing"),
    ("model: {architecture: 3}", "model.architecture: expected text, got int 3"),
    ("model: [1]", "model: expected a section"),
    ("- 1", "expected a section"),
    ("", "is empty"),
    ("# only a comment", "is empty"),
    ("model: {a: 1, a: 2}", "key 'a' is given twice"),
    ("model: {architecture: llama", "line 1"),
    ("model: {architecture: llama}\ntraining: {max_step: 3}", "training: unknown key 'max_step'; nearest: 'max_steps'"),
    ("model: {architecture: llama}\ntraining: {max_steps: many}", "training.max_steps: expected an integer, got str"),
    ("model: {architecture: llama}\ntraining: {max_steps: 1.5}", "training.max_steps: expected an integer, got float"),
    ("model: {architecture: llama}\ntraining: {max_steps: 0}", "training.max_steps: expected at least 1, got 0"),
    ("model: {architecture: llama}\ntraining: {max_steps: true}", "training.max_steps: expected an integer, got bool"),
    ("model: {architecture: llama}\ntraining: {learning_rate: .nan}", "training.learning_rate: expected a number"),
    ("model: {architecture: llama}\ntraining: {learning_rate: -1}", "training.learning_rate: expected at least 0"),
    ("model: {architecture: llama}\ntraining: {torch_compile: 1}", "training.torch_compile: expected true or false"),
    ("model: {architecture: llama}\ntraining: {lr_scheduler_type: cosin}", "nearest: 'cosine'"),
    ("model: {architecture: llama}\ntraining: {precision: bf61}", "nearest: 'bf16'"),
    ("model: {architecture: llama}\ntraining: {bf16: true}", "training.bf16: not a key of a recipe"),
    ("model: {architecture: llama}\ntraining: {ignore_data_skip: false}", "training.ignore_data_skip: not a key"),
    ("model: {architecture: llama}\ntraining: {dataloader_in_order: false}", "with any workers"),
    ("model: {architecture: llama}\ntraining: {train_sampling_strategy: group_by_length}", "is a function of"),
    ("model: {architecture: llama}\ntraining: {bf16_full_eval: true}", "evaluations are in `training.precision`"),
    ("model: {architecture: llama}\ntraining: {remove_unused_columns: true}", "it would drop the target"),
    ("model: {architecture: llama}\ntraining: {output_dir: x}", "--output-dir"),
    ("model: {architecture: llama}\ndata: {corpsu: x}", "data: unknown key 'corpsu'; nearest: 'corpus'"),
    ("model: {architecture: llama}\ndata: {sequence_length: -4}", "data.sequence_length"),
    ("model: {architecture: llama}\nevaluation: {sequences: 0}", "evaluation.sequences: expected at least 1, got 0"),
    ("model: {architecture: llama}\nexperiment: {match: {by: parms}}", "experiment.match.by"),
    ("model: {architecture: llama}\nexperiment: {match: {tolerance: 2}}", "experiment.match.tolerance"),
    ("model: {architecture: llama}\nexperiment: {seeds: [a]}", "experiment.seeds[0]: expected an integer, got str"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, text))
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("max_steps=3", "max_steps"),
        ("trainin.max_steps=3", "nearest: 'training'"),
        ("training.max_steps", "expected key=value"),
        ("training..max_steps=3", "expected key=value"),
        ("training.max_steps=[", "training.max_steps"),
        ("training.max_steps.more=1", "has no keys"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, BASE), [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_recipe(tmp_path)


def test_plain_values_read_back_to_an_equal_recipe(tmp_path: Path) -> None:
    text = BASE + "experiment: {seeds: 3, matrix: {model.hidden_size: [16, 32]}, match: {by: flops}, runs: {a: {}}}"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.experiment.seeds == (1, 2, 3)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_the_hash_covers_what_changes_a_result_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    reference = load_recipe(path).stable_hash("data")
    assert load_recipe(path).stable_hash("data") == reference
    for same in ("training.logging_steps=3", "training.save_steps=3", "experiment.hypothesis=other"):
        assert load_recipe(path, [same]).stable_hash("data") == reference, same
    for other in ("training.max_steps=11", "training.seed=1", "model.hidden_size=16", "evaluation.sequences=1"):
        assert load_recipe(path, [other]).stable_hash("data") != reference, other
    assert load_recipe(path).stable_hash("other data") != reference


SET = """
model: {hidden_size: 32, num_attention_heads: 4}
training: {max_steps: 10, learning_rate: 0.1}
experiment:
  name: set
  hypothesis: it works
  seeds: [1, 2]
  matrix: {training.learning_rate: [0.2, 0.3]}
  runs:
    a: {model.architecture: llama}
    b: {model: {architecture: gla, hidden_size: 64}, training.max_steps: 5}
  scale:
    cpu: {training.max_steps: 3}
"""


def test_a_set_is_runs_times_matrix_times_seeds(tmp_path: Path) -> None:
    planned = plan_runs(load_recipe(write(tmp_path, SET))).runs
    assert len(planned) == 8
    assert [run.name for run in planned[:3]] == ["a-learning_rate-0.2", "a-learning_rate-0.2", "a-learning_rate-0.3"]
    last = planned[-1].recipe
    assert last.model == {"architecture": "gla", "hidden_size": 64, "num_attention_heads": 4}
    assert last.training == {"max_steps": 5, "learning_rate": 0.3, "seed": 2}
    assert last.experiment.hypothesis == "it works"
    assert not last.experiment.is_set


def test_overrides_win_over_runs_and_runs_over_the_scale(tmp_path: Path) -> None:
    path = write(tmp_path, SET)
    by_scale = plan_runs(load_recipe(path, scale="cpu")).runs
    assert (by_scale[0].recipe.training["max_steps"], by_scale[-1].recipe.training["max_steps"]) == (3, 5)
    overridden = plan_runs(load_recipe(path, ["training.max_steps=7", "experiment.seeds=[5]"], scale="cpu")).runs
    assert {run.recipe.training["max_steps"] for run in overridden} == {7}
    assert {run.recipe.training["seed"] for run in overridden} == {5}
    with pytest.raises(ConfigError, match="nearest: 'cpu'"):
        load_recipe(path, scale="cpuu")


@pytest.mark.parametrize("override", ["training.seed=3", "training.learning_rate=9"])
def test_what_a_set_varies_cannot_be_overridden(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="the recipe varies it"):
        plan_runs(load_recipe(write(tmp_path, SET), [override]))


def test_a_mistake_in_a_run_names_the_run(tmp_path: Path) -> None:
    text = "experiment: {runs: {good: {model.architecture: llama}, bad: {training.max_stps: 3}}}"
    with pytest.raises(ConfigError, match=r"experiment\.runs\.bad"):
        plan_runs(load_recipe(write(tmp_path, text)))


def test_setting_a_dotted_key_leaves_the_original_alone() -> None:
    values = {"a": {"b": 1}}
    assert set_dotted(values, "a.c.d", 2) == {"a": {"b": 1, "c": {"d": 2}}}
    assert set_dotted(values, "a", {"b": 3}) == {"a": {"b": 3}}
    assert values == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("key", "near"),
    [("length", "sequence_length"), ("sequence_length", "sequence_length"), ("examples", "examples")],
)
def test_an_option_of_a_probe_among_its_keys_is_told_where_it_belongs(key: str, near: str) -> None:
    values = {"model": {"architecture": "llama"}, "probe": {"task": "parity", key: 8}}
    with pytest.raises(
        ConfigError, match=rf"^probe: unknown key '{key}'; nearest: 'probe\.options\.{near}'; allowed: "
    ):
        read_recipe(values)
    with pytest.raises(ConfigError, match="unknown key 'seting'; nearest: 'setting'"):
        read_recipe({**values, "probe": {"task": "parity", "seting": "cpu"}})


def test_an_empty_override_of_a_section_is_refused_since_it_would_change_nothing() -> None:
    values = {"model": {"architecture": "llama"}, "experiment": {"runs": {"a": {}, "b": {}}}}
    with pytest.raises(
        ConfigError, match=r"^override experiment\.runs: \{\} would change nothing.* a, b \(or --run NAME"
    ):
        read_recipe(values, ["experiment.runs={}"])
    assert read_recipe(values, ["experiment.matrix={}"]).experiment.runs
