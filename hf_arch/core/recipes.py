"""The recipes that come with the package, by name: `quickstart`, `experiments/heads`, `heads`.

They lie in `recipes/` of a clone and in `hf_arch/recipes/` of an installed wheel.
"""

from __future__ import annotations

from pathlib import Path

from .errors import NEAR_ONES, ConfigError, near_ones

_PACKAGE = Path(__file__).parents[1]


def recipes_folder() -> Path:
    """The folder of the recipes; of the clone where this is one. It may not exist, in a copy of single files."""
    clone = _PACKAGE.parent / "recipes"
    return clone if clone.is_dir() else _PACKAGE / "recipes"


def recipe_names() -> list[str]:
    """The names of all recipes: their paths within the folder, without `.yaml`."""
    folder = recipes_folder()
    found = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return sorted(path.as_posix() for path in found if path.parts[0] != "accelerate")  # those are launch files


def short_names() -> list[str]:
    """The same as one types them: `quickstart` for `quickstart/quickstart`."""
    return [name if not _doubled(name) else name.partition("/")[0] for name in recipe_names()]


def _doubled(name: str) -> bool:
    folder, _, last = name.rpartition("/")
    return folder == last


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    A name is the path within the recipes' folder without `.yaml`, or its last part where only one recipe has it.

    Raises:
        ConfigError: a text without `.yaml` that is no file and no such name, or the last part of several.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    name, names = str(recipe), recipe_names()
    fits = _fitting(name, names)
    if len(fits) == 1:
        return recipes_folder() / f"{fits[0]}.yaml"
    if fits:
        raise ConfigError(f"recipe: {name!r} is the name of several; allowed: {', '.join(fits)}")
    last = {entry.rpartition("/")[2]: entry for entry in short_names()}
    near = list(dict.fromkeys([*near_ones(name, short_names()), *(last[entry] for entry in near_ones(name, last))]))
    hint = f"nearest: {', '.join(map(repr, near[:NEAR_ONES]))}; " if near else ""
    raise ConfigError(
        f"recipe: {name!r} is neither a file nor a recipe of hf_arch; {hint}all {len(names)}: hf-arch list --recipes"
    )


def is_recipe_name(text: str) -> bool:
    """Whether `text` is the name of a recipe that comes with the package, or the last part of one or several."""
    return bool(_fitting(text, recipe_names()))


def _fitting(name: str, names: list[str]) -> list[str]:
    return [name] if name in names else [entry for entry in names if entry.rpartition("/")[2] == name]
