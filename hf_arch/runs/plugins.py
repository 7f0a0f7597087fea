"""A run and its plugins: which it uses, their copies in its folder, and the recipe that names the copies.

`keep_plugins` is called once where a run begins; from then on its recipe is whole in itself, and moves with its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_arch.checkpoints.plugin_copies import RUN_FACTS, chosen_sources, copy_facts, write_copies
from hf_arch.core.files import read_json
from hf_arch.core.plugins import load_source
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import CONFIG_FILE


def with_run_plugins(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe of a run that goes on in `folder`, with the plugins that the run keeps there in the place of the files
    of the same names. Where a file says something else by now, that is said, and the copy used.

    Raises `ConfigError` where a copy was changed since the run recorded it.
    """
    sources = chosen_sources(folder)
    if not sources:
        return recipe
    own = {source.name for source in sources}
    for source in sources:
        load_source(source)
    others = [path for path in recipe.model.get("plugins") or [] if Path(path).name not in own]
    return recipe.with_plugins([*others, *(str(source.path) for source in sources)])


def keep_plugins(recipe: Recipe, folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Writes what the run in `folder` uses of plugins into it. Returns the recipe, which then names these copies alone,
    and what the run's config records of them.

    Raises `ConfigError` where the folder has other versions of them.
    """
    sources = [plugin.source for plugin in recipe.kept_plugins]
    recorded = _recorded(folder)
    kept = {(folder / copy).resolve(): copy for copy in recorded}
    new = [source for source in sources if source.path not in kept]
    facts = copy_facts(new, folder)
    write_copies(folder, facts, new)
    facts |= {kept[source.path]: recorded[kept[source.path]] for source in sources if source.path in kept}
    return recipe.with_plugins([str(folder / copy) for copy in facts]), facts


def _recorded(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    facts = read_json(file).get(RUN_FACTS) if file.is_file() else None
    return dict((facts or {}).get("plugins") or {})
