"""Errors carry data, of the same class whatever they pass through, and no code reads their text."""

from __future__ import annotations

import ast
import pickle
import re
from functools import cache
from pathlib import Path

import pytest

import hf_arch
from hf_arch.cli.listing import LISTS
from hf_arch.cli.root import app
from hf_arch.core.errors import ConfigError, UnknownChoiceError, UnknownKeyError
from hf_arch.experiments.planning.plan import plan_runs
from hf_arch.recipe.recipe import read_recipe

PACKAGE = Path(__file__).parents[2] / "hf_arch"


@cache
def nodes_of_files() -> dict[Path, list[ast.AST]]:
    """Every node of the package by its file; in a function, because reading it all takes more than a second."""
    return {file: [*ast.walk(ast.parse(file.read_text(encoding="utf-8")))] for file in sorted(PACKAGE.rglob("*.py"))}


def refused(model: dict[str, object]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        hf_arch.config_from_dict({"architecture": "llama", **model})
    return caught.value


def test_an_unknown_key_says_which_and_what_is_near() -> None:
    error = refused({"hiden_size": 3})
    assert isinstance(error, UnknownKeyError)
    assert (error.field, error.value, error.nearest) == ("model", "hiden_size", "hidden_size")
    assert "num_hidden_layers" in error.allowed


def test_an_unknown_choice_says_the_field_and_what_is_allowed() -> None:
    error = refused({"norm": "rmsnrm"})
    assert isinstance(error, UnknownChoiceError)
    assert (error.field, error.value, error.nearest) == ("model.norm", "rmsnrm", "rmsnorm")
    assert "layernorm" in error.allowed


def test_of_many_names_the_near_ones_are_shown_and_the_command_that_lists_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    many = hf_arch.list_architectures()
    error = refused({"architecture": "glla"})
    assert "nearest: 'gla', " in str(error) and str(error).endswith(f"all {len(many)}: hf-arch list")
    assert set(error.allowed) == set(many) and not set(re.findall(r"\w+", str(error))) >= set(many)
    assert str(refused({"hiden_size": 3})).endswith(": hf-arch info llama --options")
    for command in (["info", "glla"], ["check", "glla"], ["bench", "glla"]):
        with pytest.raises(SystemExit):
            app(command)
        said = capsys.readouterr().err
        assert re.search(rf"nearest: 'gla', .*; all {len(many)}: hf-arch list$", said.strip()), command


@pytest.mark.parametrize(
    ("section", "key", "listing"),
    [
        ("training", {"max_step": 3}, "hf-arch list --keys"),
        ("evaluation", {"sequence": 3}, None),
        ("training", {"optim": "adanw"}, "hf-arch list --components"),
    ],
)
def test_a_long_list_of_keys_or_values_is_one_command_away(section: str, key: dict, listing: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe({"model": {"architecture": "gla"}, section: key})
    assert "nearest: " in str(caught.value) and 1 < len(re.findall(r"'(\w+)'", str(caught.value))) <= 7
    if listing is None:
        assert "; allowed: " in str(caught.value)
    else:
        assert str(caught.value).endswith(listing)
        shown = {row["name"].rpartition(".")[2] for row in LISTS[listing.split()[-1]]()}
        assert shown >= set(caught.value.allowed)


@pytest.mark.parametrize(
    ("model", "field", "value", "expected"),
    [
        ({"tie_word_embeddings": "yes"}, "model.tie_word_embeddings", "yes", "expected bool"),
        ({"mixer": {"type": "gla", "expand_k": "big"}}, "model.mixer gla.expand_k", "big", "expected one of"),
    ],
)
def test_a_wrong_type_is_found_by_asking_the_type(
    model: dict[str, object], field: str, value: object, expected: str
) -> None:
    error = refused(model)
    assert (error.field, error.value) == (field, value)
    assert f"{value!r} is not allowed; {expected}" in str(error) and "\n" not in str(error)


def test_an_error_keeps_its_class_and_facts_on_the_way_up() -> None:
    recipe = read_recipe(
        {"model": {"hidden_size": 32}, "experiment": {"runs": {"a": {"model": {"architecture": "llama", "nrom": "x"}}}}}
    )
    with pytest.raises(UnknownKeyError) as caught:
        plan_runs(recipe)
    assert (caught.value.field, caught.value.value) == ("experiment.runs.a.model", "nrom")
    assert str(caught.value).startswith("experiment.runs.a: model: unknown key 'nrom'; nearest: 'norm'")


def test_it_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(refused({"norm": "rmsnrm"})))
    assert (type(error), error.field, error.nearest) == (UnknownChoiceError, "model.norm", "rmsnorm")


def test_nothing_decides_by_the_text_of_an_error_or_the_name_of_a_class() -> None:
    """No comparison, `in`, `startswith` or pattern over `str(error)` or a class's `__name__`."""
    text = re.compile(r"str\(\w*(error|exception|reason)\w*\)|\.reason\b|__class__\.__name__|type\(\w+\)\.__name__")
    found = []
    nodes = nodes_of_files()
    for file in sorted(set(nodes) - set(PACKAGE.glob("models/*.py"))):  # meets caches by their names
        for node in nodes[file]:
            decides = isinstance(node, ast.Compare) or (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("startswith", "endswith", "search", "match", "fullmatch")
            )
            if decides and text.search(ast.unparse(node)):
                found.append(f"{file.relative_to(PACKAGE.parent)}:{node.lineno}: {ast.unparse(node)}")
    assert not found, "\n".join(found)


def template(message: ast.expr) -> str:
    """The text of a message as it is written, with `{}` for what is filled in; "" for one made elsewhere."""
    if isinstance(message, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in message.values)
    if isinstance(message, ast.BinOp) and isinstance(message.op, ast.Add):
        return template(message.left) + template(message.right)
    return message.value if isinstance(message, ast.Constant) else ""


def test_every_error_names_its_field_first_and_is_plain_english() -> None:
    """`field: what is wrong`: an option, a file, a part of the model, in a few words before the first colon."""
    field = re.compile(r"(?:[\w.{}\[\]/-]+|{}'s)(?: [\w.{}\[\]/-]+,?){0,3}: \S")
    odd = re.compile(r"(?<!there )\bis no (?!longer\b)|\basked for\b|\bin silence\b|\balike\b|\bhonour")
    found, read = [], 0
    for file, nodes in nodes_of_files().items():
        for node in nodes:
            called = node.func if isinstance(node, ast.Call) else None
            if not isinstance(called, ast.Name) or not called.id.endswith("ConfigError") or not node.args:
                continue
            text = template(node.args[0])
            made_elsewhere = not text.replace("{}", "").strip()
            read += not made_elsewhere
            if not made_elsewhere and (not field.match(text) or odd.search(text)):
                found.append(f"{file.relative_to(PACKAGE.parent)}:{node.lineno}: {text}")
    assert read > 500 and not found, "\n".join(found)
