"""The copies of plugins in a run folder, which are what the run was trained with and what loading it uses.

<run>/plugins/mine.py            the file as it was executed, and whatever it imports next to it
             /table.json         what it reads below its folder: a copy up to 1 MiB, a link to a larger file
     /experiment_config.json     `model.plugins: [plugins/mine.py]`, and under `run.plugins` the sha256 of each file,
                                 and where it came from

A file that has changed at the place where it came from is told, and taken instead only where that is asked for
(`--plugin-code current`). A copy that is not what the run recorded is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.core.files import write_atomic
from hf_arch.core.plugin_files import ReadFile, files_read
from hf_arch.core.plugin_source import PluginSource, read_source
from hf_arch.core.plugins import environment_plugins, load_source
from hf_arch.core.warn import warn_once

PLUGINS_DIR = "plugins"
RUN_CONFIG = "experiment_config.json"
RUN_FACTS = "run"
LARGEST_KEPT = 1 << 20
"""Bytes of a file that a plugin reads, up to which a run keeps a copy of it. Of a larger one it has the hash."""
CHOICES = ("run", "current")
_choice = "run"


@dataclass(frozen=True)
class PluginCopy:
    """A plugin as a run keeps it: `file` in its folder, `sha256` of every file of it, and the `original` path."""

    file: Path
    sha256: Mapping[str, str]
    original: Path

    def read(self) -> PluginSource:
        """The copy. Raises `ConfigError` where it is not what the run recorded."""
        source = read_source(self.file)
        for name, recorded in self.sha256.items():
            if (found := source.hashes.get(name)) != recorded:
                raise ConfigError(
                    f"{self.file.with_name(name)}: not what the run was trained with (sha256 "
                    f"{'missing' if found is None else found[:8]}, recorded {recorded[:8]}); restore the file"
                )
        return source


def choose_plugin_code(choice: str) -> str:
    """Sets which version of its plugins a run is loaded with: its own copy (`run`), or the file where it came from
    (`current`). Raises `ConfigError` for anything else."""
    global _choice
    if choice not in CHOICES:
        raise choice_error("--plugin-code", choice, CHOICES)
    _choice = choice
    return choice


def copy_facts(sources: Iterable[PluginSource], folder: Path) -> dict[str, dict[str, Any]]:
    """What a run in `folder` records of its plugins: {path of the copy in the folder: sha256 by file, original}."""
    facts: dict[str, dict[str, Any]] = {}
    taken: dict[str, bytes] = {}
    for source in sources:
        clash = any(taken.get(name, text) != text for name, text in source.files.items())
        place = f"{PLUGINS_DIR}/{source.digest[:8]}" if clash else PLUGINS_DIR
        if not clash:
            taken.update(source.files)
        original = os.path.relpath(source.path, folder.resolve())
        facts[f"{place}/{source.name}"] = {"sha256": dict(source.hashes), "original": original}
    return facts


def write_copies(folder: Path, facts: Mapping[str, Mapping[str, Any]], sources: Iterable[PluginSource]) -> None:
    """Writes the files of `sources` where `facts` say, and what they read below their folder so far. Raises
    `ConfigError` where another text is there already."""
    for copy, source in zip(facts, sources, strict=True):
        for name, text in source.files.items():
            _write(text, (folder / copy).with_name(name))
        for name, read in files_beside(source).items():
            place = (folder / copy).parent / name
            if read.path.stat().st_size <= LARGEST_KEPT:
                _write(read.path.read_bytes(), place)
            elif not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(read.path)


def files_beside(source: PluginSource) -> dict[str, ReadFile]:
    """{path from the folder of a plugin: file} of what it has read below it so far, but for Python."""
    return {
        name: read
        for name, read in files_read(source).items()
        if read.below and read.path.suffix not in (".py", ".pyc")
    }


def _write(content: bytes, file: Path) -> None:
    if file.is_file() and file.read_bytes() != content:
        raise ConfigError(f"{file}: not what the run is to be trained with; name another folder")
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)


def copies_in(run: Path) -> list[PluginCopy]:
    """The plugins that the run in this folder keeps; none where it uses none, or an earlier release wrote it."""
    config = run / RUN_CONFIG
    if not config.is_file():
        return []
    try:
        facts = json.loads(config.read_text(encoding="utf-8")).get(RUN_FACTS) or {}
        records = facts.get("plugins") or {}
        return [
            PluginCopy(run / name, dict(entry["sha256"]), run / str(entry["original"]))
            for name, entry in records.items()
        ]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ConfigError(f"{config}: run.plugins: {type(error).__name__}: {error}") from error


def chosen_sources(run: Path) -> list[PluginSource]:
    """The version of each plugin of a run to load it with; where another one is around, that is said.

    Raises:
        ConfigError: a copy was changed or is missing, or `current` was asked for and there is no such file.
    """
    return [_chosen(copy, run) for copy in copies_in(run)]


def load_plugins_of(folder: Path) -> None:
    """Imports the plugins of the run that a folder, its `model/` or one of its checkpoints belongs to."""
    for run in (folder, folder.parent, folder.parent.parent):
        if (run / RUN_CONFIG).is_file():
            for source in chosen_sources(run):
                load_source(source)
            return


def _chosen(copy: PluginCopy, run: Path) -> PluginSource:
    places = [Path(path).expanduser() for path in environment_plugins() if Path(path).name == copy.file.name]
    place = next((place for place in [*places, copy.original] if place.is_file()), None)
    if _choice == "current" and place is None:
        raise ConfigError(f"--plugin-code: current: no file at {copy.original}, where {copy.file.name} came from")
    kept = None if _choice == "current" and not copy.file.is_file() else copy.read()
    now = None if place is None else _readable(place, strict=_choice == "current")
    if now is None or (kept is not None and now.digest == kept.digest):
        assert kept is not None
        return kept
    used = "the file is used" if _choice == "current" else "the copy is used (--plugin-code current takes the file)"
    message = "plugin %s: %s is not what %s was trained with; %s"
    warn_once((now.path, used), message, copy.file.name, place, run.name, used)
    return now if _choice == "current" or kept is None else kept


def _readable(place: Path, strict: bool) -> PluginSource | None:
    """The file there; what cannot be read is another version all the same, and matters only where it is to be used."""
    try:
        return read_source(place)
    except ConfigError:
        if strict:
            raise
        return None
