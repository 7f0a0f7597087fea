"""A run and its plugins: which it uses, their copies in its folder, and the recipe that names the copies.

`keep_plugins` is called once where a run begins; from then on its recipe is whole in itself, and moves with its folder.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_arch.checkpoints.plugin_copies import (
    LARGEST_KEPT,
    PLUGINS_DIR,
    RUN_FACTS,
    chosen_sources,
    copies_in,
    copy_facts,
    files_beside,
    write_copies,
)
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json
from hf_arch.core.plugin_files import ReadFile, files_read, folder_of
from hf_arch.core.plugin_source import PluginSource
from hf_arch.core.plugins import Plugin, load_source
from hf_arch.core.registry import CORPORA
from hf_arch.core.warn import warn_once
from hf_arch.data.cache import data_cache, user_path
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import CONFIG_FILE, RESULTS_FILE

READ_DIR = "read"


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


def check_files_read(folder: Path, sources: Iterable[PluginSource]) -> None:
    """Raises ConfigError where the run in `folder` was trained with other contents of a file that these plugins read:
    its name tells of their source alone."""
    recorded = recorded_files(folder)
    for source in sources if recorded else ():
        for name, read in files_beside(source).items():
            if recorded.get(name, read.sha256) != read.sha256:
                raise ConfigError(
                    f"{folder}: was trained with another {name} (sha256 {recorded[name][:8]}, now {read.sha256[:8]}), "
                    f"which {source.name} reads; restore the file, move the folder away, or name another --results-dir"
                )


def recorded_files(folder: Path) -> dict[str, str]:
    """{name: sha256} of the files that the plugins of the run in `folder` have read by what it wrote last."""
    results = folder / RESULTS_FILE
    facts = read_json(results).get("provenance") if results.is_file() else None
    found = facts.get("plugin_files") if isinstance(facts, Mapping) else None
    return {str(name): str(sha256) for name, sha256 in found.items()} if isinstance(found, Mapping) else {}


def check_kept_files(folder: Path) -> None:
    """For a run that goes on in `folder`: raises ConfigError where a file that its plugins read is not what the run
    began with, next to the plugin as this process has loaded it, or next to the copy in the run. Where the process
    reads the copy, and the file that it is of has changed, that is said."""
    recorded = recorded_files(folder)
    for copy in copies_in(folder) if recorded else ():
        used = folder_of(copy.read())
        for name, sha256 in recorded.items():
            for file in dict.fromkeys((copy.file.parent / name, used / name)):
                if _hash_of(file) not in (None, sha256):
                    raise ConfigError(
                        f"--resume: {file}: not what the run was trained with (recorded sha256 {sha256[:8]}); restore "
                        "the file, or begin a new run in another folder"
                    )
            if _hash_of(original := copy.original.parent / name) not in (None, sha256):
                message = "plugin %s: %s, which it reads, is not what %s was begun with; the copy in the run is used"
                warn_once((original, sha256), message, copy.file.name, original, folder.name)


def _hash_of(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def read_files(plugins: Iterable[Plugin], recipe: Recipe | None = None) -> dict[str, ReadFile]:
    """{name: file} of what these plugins have read so far besides their source, and of what the recipe names."""
    texts = set() if recipe is None else set(_texts(_without_text(recipe)))
    found: dict[str, ReadFile] = {}
    for plugin in plugins:
        for name, file in files_read(plugin.source, texts).items():
            taken = found.get(name, file)
            found[name if taken.sha256 == file.sha256 else f"{file.sha256[:8]}/{name}"] = file
    return found


def text_files(files: Mapping[str, ReadFile], recipe: Recipe, plugins: Iterable[Plugin]) -> list[str]:
    """Those of the files that plugins read which are of the corpus, or of the cache of its tokens: in them stands what
    a run is scored on. A plugin that registers the corpus may read it."""
    corpora = [recipe.data.corpus, *(recipe.data.mixture or ())] if recipe.probe is None else []
    own = {
        name for plugin in plugins for part in plugin.parts for registry, name, _ in part.entries if registry is CORPORA
    }
    if own & set(corpora):
        return []
    places = [data_cache(), *(place for name in corpora if (place := user_path(name).resolve()).exists())]
    return [name for name, file in files.items() if any(file.path.resolve().is_relative_to(place) for place in places)]


def keep_read_files(files: Mapping[str, ReadFile], folder: Path) -> None:
    """Copies the small ones into the run in `folder`: next to the copy of the plugin, where this one finds them again,
    or under `plugins/read/` where they came from elsewhere, or are Python."""
    for name, file in files.items():
        place = folder / PLUGINS_DIR / ("" if file.below and file.path.suffix != ".py" else READ_DIR) / name
        with suppress(OSError):  # the run has its hash
            if not place.exists() and file.path.stat().st_size <= LARGEST_KEPT:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.path, place)


def _without_text(recipe: Recipe) -> dict[str, Any]:
    """The sections that may name a file for a plugin: the corpus, which has a fingerprint, is none of theirs."""
    sections = {key: value for key, value in recipe.to_dict().items() if key not in ("data", "experiment")}
    sections["model"] = {key: value for key, value in recipe.model.items() if key != "plugins"}
    return sections


def _texts(node: Any) -> Iterator[str]:
    """Every text in nested mappings and lists."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _texts(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _texts(value)


def _recorded(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    facts = read_json(file).get(RUN_FACTS) if file.is_file() else None
    return dict((facts or {}).get("plugins") or {})
