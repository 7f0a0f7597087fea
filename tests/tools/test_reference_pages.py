"""The reference of recipe keys and of commands is what the code says, and its examples are read by it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from hf_arch.recipe.recipe import Recipe
from hf_arch.recipe.training_section import training_fields
from tools import cli_page, recipe_page
from tools.recipe_page import Key, Section

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = recipe_page.sections()
KEYS = [(section, key) for section in SECTIONS for key in section.keys]
SAID = f"transformers {transformers.__version__.rpartition('.')[0]}"


def test_the_page_of_keys_is_current() -> None:
    written = (DOCS / "recipe_keys.md").read_text()
    if SAID in written:
        assert written == recipe_page.page(), "run: python -m tools.recipe_page > docs/recipe_keys.md"
    else:  # another version of transformers has other names in `training`, which are not ours
        for section in SECTIONS:
            assert section.path == "training" or recipe_page.section_text(section) in written


def test_the_page_of_commands_is_current() -> None:
    assert (DOCS / "cli.md").read_text() == cli_page.page(), "run: python -m tools.cli_page > docs/cli.md"


@pytest.mark.parametrize(("section", "key"), KEYS, ids=[f"{section.path}.{key.name}" for section, key in KEYS])
def test_an_example_is_read_as_written(section: Section, key: Key) -> None:
    value = yaml.safe_load(key.example)
    top, *rest = section.path.split(".")
    inner: dict[str, Any] = {key.name: value}
    for name, needed in (("rates", [0.1, 0.2]), ("sizes", [1e6]), ("low", 1e-9), ("high", 1.0), ("task", "mqar")):
        if name in {entry.name for entry in section.keys if entry.default == recipe_page.REQUIRED}:
            inner.setdefault(name, needed)
    for name in reversed(rest):
        inner = {name: inner}
    recipe: dict[str, Any] = {"model": {"architecture": "llama"}, "experiment": {"runs": {"a": None, "b": None}}}
    if top == "model" and key.name == "plugins":
        pytest.skip("its example is a file of the reader's own; tests/runs/test_run_plugins.py reads one")
    recipe[top] = {**recipe.get(top, {}), **inner}
    if key.name in ("matrix", "tune", "learning_rates", "ladder") and top == "experiment":
        recipe["experiment"].pop("matrix", None) if key.name != "matrix" else None
    read = Recipe.from_dict(recipe)
    assert key.meaning and key.type != "any"
    assert getattr(read, top) is not None


def test_every_key_of_training_is_there() -> None:
    (training,) = [section for section in SECTIONS if section.path == "training"]
    assert {key.name for key in training.keys} == set(training_fields())
    assert all("as in transformers" not in key.meaning for key in training.keys[:30])


def test_every_link_between_the_pages_leads_somewhere() -> None:
    """A page of docs/, and a heading of it where the link names one."""
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor and file.suffix == ".md":
                headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
                slugs = {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page.name}: {target}"
