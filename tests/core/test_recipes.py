"""A recipe is found by its path, or by its name among those that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_arch.core import recipes
from hf_arch.core.errors import ConfigError
from hf_arch.core.recipes import find_recipe, recipe_names, recipes_folder
from hf_arch.recipe.recipe import load_recipe


def test_every_recipe_has_a_name_that_finds_it():
    assert len(recipe_names()) > 30
    for name in recipe_names():
        assert find_recipe(name) == recipes_folder() / f"{name}.yaml"
    assert find_recipe("quickstart") == find_recipe("quickstart/quickstart")


@pytest.mark.parametrize("name", ["quickstart", "tutorial/first_comparison"])
def test_what_a_newcomer_runs_takes_the_scale_of_a_cpu(name: str):
    asked, plain = load_recipe(name, scale="cpu"), load_recipe(name)
    for section in ("model", "data", "training", "evaluation", "probe"):
        assert getattr(asked, section) == getattr(plain, section)


def test_a_path_stays_what_it_is(tmp_path: Path):
    for path in ("missing.yaml", "folder/missing.yml", str(tmp_path)):
        assert find_recipe(path) == Path(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "quikstart",
            r"recipe: 'quikstart' is neither a file nor a recipe of hf_arch; nearest: 'quickstart'",
        ),
        ("mqar", r"recipe: 'mqar' is the name of several; allowed: anchors/mqar, probes/mqar"),
        ("accelerate/ddp", r"recipe: 'accelerate/ddp' is neither a file nor a recipe"),
        ("../recipes/quickstart/quickstart", r"is neither a file nor a recipe"),
    ],
)
def test_a_name_that_finds_none_or_several(name: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        find_recipe(name)
    assert "\n" not in str(caught.value)


def test_the_wheel_has_them_beside_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "hf_arch/recipes/quickstart").mkdir(parents=True)
    (tmp_path / "hf_arch/recipes/quickstart/quickstart.yaml").write_text("model: {}\n")
    monkeypatch.setattr(recipes, "_PACKAGE", tmp_path / "hf_arch")
    assert find_recipe("quickstart") == tmp_path / "hf_arch/recipes/quickstart/quickstart.yaml"
