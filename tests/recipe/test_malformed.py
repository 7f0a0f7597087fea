"""Whatever is wrong in a recipe: one line on stderr that names it, exit code 2, nothing written."""

from __future__ import annotations

import copy
import math
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hf_arch.cli import app
from hf_arch.core.errors import ConfigError
from hf_arch.experiments.planning import prepare
from hf_arch.experiments.planning.plan import plan_runs
from hf_arch.recipe.recipe import load_recipe

VALID: dict[str, Any] = {
    "model": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "norm": "rmsnorm",
        "position": "rope", "norm_eps": 1e-5, "residual_dropout": 0.1, "mixer": {"type": "attention"},
    },
    "data": {"corpus": "python-docs", "tokenizer": "bpe", "vocab_size": 512, "sequence_length": 32},
    "training": {
        "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "weight_decay": 0.1, "warmup_steps": 1,
        "lr_scheduler_type": "cosine", "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "adam_beta2": 0.95,
    },
    "evaluation": {"sequences": 4, "new_tokens": 4, "temperature": 0.8, "top_k": 5, "prompt": "a"},
    "experiment": {
        "name": "set", "hypothesis": "a better than b", "seeds": [1], "matrix": {"training.learning_rate": [0.1]},
        "match": {"by": "parameters", "tolerance": 0.2},
        "runs": {"a": {"model.architecture": "llama"}, "b": {"model": {"architecture": "llama", "hidden_size": 64}}},
        "scale": {"cpu": {"training": {"max_steps": 2}}},
    },
}  # fmt: skip
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([2**70, 10**400, math.nan, math.inf, -0.5, 1.5]),
    st.text(string.printable, max_size=8), st.sampled_from(["llama", "auto", "../..", "a.b", "\x00", "ü", "no"]),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(["extra", "type", "name", "seed", "plugins", "architecture", "ffn", "sets", "study", ""]),
    st.integers(0, 2), st.none(), st.booleans(),
)  # fmt: skip
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2), max_leaves=4
)


def places(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested mappings and lists."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*above, key)
        yield from places(value, (*above, key))


def misspelt(draw: st.DrawFn, key: str) -> str:
    at = draw(st.integers(0, len(key) - 1))
    return key[:at] + draw(st.sampled_from(["", "xq", key[at].upper() + "_"])) + key[at + 1 :]


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """VALID with one to three values replaced, removed, misspelt or added."""
    recipe = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(sorted(places(recipe), key=repr)))
        node = recipe
        for key in place[:-1]:
            node = node[key]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "misspell", "add"]))
        if kind == "replace":
            node[place[-1]] = draw(VALUES)
        elif kind == "remove":
            del node[place[-1]]
        elif kind == "misspell" and isinstance(place[-1], str) and place[-1]:
            node[misspelt(draw, place[-1])] = node.pop(place[-1])
        elif isinstance(node, dict):
            node[draw(KEYS)] = draw(VALUES)
    return recipe


def planned(content: bytes) -> str | None:
    """The error of a recipe, or None where it can be planned; any other exception is a bug."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(content)
        try:
            plan_runs(load_recipe(path, scale="cpu"))
        except ConfigError as error:
            assert [entry.name for entry in Path(folder).iterdir()] == ["recipe.yaml"]
            return str(error).replace(folder, "")
    return None


def check(message: str | None) -> None:
    """One line, of words that say something."""
    if message is not None:
        assert message.strip() and len(message.splitlines()) == 1, message
        assert not message.startswith(("'", "Traceback")) and "object at 0x" not in message, message


QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.rest
@QUICK
@given(recipe=mutated())
@example(recipe=VALID)
def test_any_change_of_a_recipe_is_planned_or_refused_in_one_line(recipe: dict[str, Any]) -> None:
    message = planned(yaml.safe_dump(recipe, allow_unicode=True).encode())
    assert message is None or repr(recipe) != repr(VALID), message  # [True] == [1], and is refused
    check(message)


@pytest.mark.rest
@QUICK
@given(at=st.integers(0, 1500), cut=st.integers(0, 30), put=st.binary(max_size=4) | st.text("\t:{}[]&*!|>-'\"#%@`? \n"))
@example(at=0, cut=0, put=b"\xff\xfe\x00")
@example(at=5, cut=0, put="\n\t- ")
def test_any_change_of_its_text_is_planned_or_refused_in_one_line(at: int, cut: int, put: bytes | str) -> None:
    text = yaml.safe_dump(VALID).encode()
    check(planned(text[:at] + (put if isinstance(put, bytes) else put.encode()) + text[at + cut :]))


TEXTS = {
    "an anchor of itself": ("model: &a {architecture: llama, mixer: *a}", "alias"),
    "a list of itself": ("model: &a [*a]", "alias"),
    "aliases of aliases": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n"
        for a, b in zip("abcdefg", "bcdefgh", strict=True)), "aliases"),
    "nested too deep": ("model: " + "[" * 20_000, "deep"),  # torch raises the limit of recursion, after some imports
    "a date that is none": ("model: 2020-13-45", "month"),
    "a tag that does not fit": ("model: !!int x", "a value that cannot be read"),
    "an object": ("model: !!python/object:os.system {}", "tag"),
    "a key that is a list": ("[1, 2]: model", "unhashable"),
    "tabs": ("model:\n\tarchitecture: llama", "line 2"),
    "two documents": ("model: {}\n---\nmodel: {}", "document"),
    "a byte that is no text": (b"model: {architecture: \xff}", "utf-8"),
    "a control character": ("model: {architecture: \x07}", "#x0007"),
    "a key twice": ("model: {architecture: llama, architecture: gla}", "'architecture' is given twice"),
    "a section twice": ("model: {architecture: llama}\nmodel: {}", "'model' is given twice"),
    "a run twice": ("experiment: {runs: {a: {}, a: {}}}", "'a' is given twice"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_is_no_recipe_says_why(kind: str) -> None:
    text, expected = TEXTS[kind]
    message = planned(text if isinstance(text, bytes) else text.encode())
    check(message)
    assert message is not None and expected in message, message


# place, wrong value, what the line has to name
MISTAKES: list[tuple[str, Any, tuple[str, ...]]] = [
    ("modle", {}, ("modle", "model")),
    ("model.hiden_size", 32, ("hiden_size", "hidden_size")),
    ("model.norm", "rmsnrm", ("norm", "rmsnrm", "rmsnorm")),
    ("model.mixer", {"type": "atention"}, ("mixer", "atention", "attention")),
    ("model.mixer", [], ("mixer", "empty")),
    ("model.num_hidden_layers", -2, ("num_hidden_layers", "-2")),
    ("model.num_hidden_layers", 10**12, ("num_hidden_layers", "too large", "10000")),
    ("model.hidden_size", 10**12, ("hidden_size", "too large")),
    ("training.save_total_limit", 1e99, ("training.save_total_limit", "1e+99", "too large")),
    ("model.num_attention_heads", 5, ("num_attention_heads", "5", "32")),
    ("model.norm_eps", -1.0, ("norm_eps", "-1.0")),
    ("model.norm_eps", math.nan, ("model.norm_eps", "nan")),
    ("model.residual_dropout", 1.5, ("residual_dropout", "1.5")),
    ("model.plugins", 3, ("model.plugins", "3", "list")),
    ("model.plugins", ["none.py"], ("none.py",)),
    ("data.sequence_length", "long", ("data.sequence_length", "long")),
    ("data.sequence_length", -1, ("data.sequence_length", "-1", "at least 2")),
    ("data.tokeniser", "bpe", ("data", "tokeniser", "tokenizer")),
    ("data.mixture", {"a": -1}, ("data.mixture.a", "-1")),
    ("training.max_stps", 3, ("training", "max_stps", "max_steps")),
    ("training.warmup_steps", -3, ("training.warmup_steps", "-3", "at least 0")),
    ("training.eval_steps", 1.5, ("training.eval_steps", "1.5")),
    ("training.logging_steps", 0, ("training.logging_steps", "0")),
    ("training.adam_beta2", 1.0, ("training.adam_beta2", "1.0", "below 1")),
    ("training.learning_rate", [1], ("training.learning_rate", "[1]", "a number")),
    ("training.lr_scheduler_type", "cosin", ("training.lr_scheduler_type", "cosin", "cosine")),
    ("training.lr_scheduler_kwargs", "x", ("training.lr_scheduler_kwargs", "x")),
    ("evaluation.temperature", -1.0, ("evaluation.temperature", "-1.0")),
    ("evaluation.speed", 3, ("evaluation.speed", "3", "true or false")),
    ("experiment.name", "../..", ("experiment.name", "../..")),
    ("experiment.seeds", [1, 1], ("experiment.seeds", "[1, 1]")),
    ("experiment.seeds", -4, ("experiment.seeds", "-4")),
    ("experiment.seeds", 10**30, ("experiment.seeds", "1000")),
    ("experiment.matrix", {"training.learning_rate": []}, ("experiment.matrix.training.learning_rate", "at least one")),
    ("experiment.matrix", {"training.learning_rat": [1]}, ("learning_rat", "learning_rate")),
    ("experiment.matrix", {"training.learning_rate": 1}, ("experiment.matrix.training.learning_rate", "a list", "1")),
    ("experiment.match", {"by": "parms"}, ("experiment.match.by", "parms", "parameters")),
    ("experiment.match", {"reference": "c"}, ("experiment.match.reference", "'c'", "a, b")),
    ("experiment.match", {"vary": "hiden_size"}, ("vary", "hiden_size")),
    ("experiment.runs", {"a": {"model.architecture": "lama"}}, ("lama", "llama")),
    ("experiment.runs", {"a": {1: 2}}, ("experiment.runs.a", "1")),
    ("experiment.runs", [], ("experiment.runs", "[]")),
    ("experiment.study", "serch", ("experiment.study", "serch", "search")),
    ("experiment.scale", {"cpu": {"training": {None: 1}}}, ("None",)),
    ("experiment.scale", {"cpu": {"training": {"max_step": 1}}}, ("max_step", "max_steps")),
    ("probe", {"task": "mqar"}, ("data", "probe")),
]  # fmt: skip


@pytest.mark.sampled(10)
@pytest.mark.parametrize(("place", "value", "named"), MISTAKES, ids=lambda entry: str(entry)[:40])
def test_a_mistake_on_the_command_line_names_field_value_and_nearest(
    place: str, value: Any, named: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "prepare_data", lambda options: pytest.fail("the mistake was not seen in time"))
    recipe = copy.deepcopy(VALID)
    node = recipe
    for key in place.split(".")[:-1]:
        node = node[key]
    node[place.split(".")[-1]] = value
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = ["run", str(path), "--scale", "cpu", "--results-dir", str(tmp_path / "results")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and not done.stdout
    assert all(name in done.stderr for name in named), done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]
