"""Users' own files: imported for what they register.

What a file registers belongs to its text, not to its path: the same text is loaded once, wherever it lies, and another
version of it replaces an earlier one only where nothing has been made of that yet. Otherwise two versions in one
process are an error: a model must not be built from one and described from the other.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..environment import read
from .errors import ConfigError
from .plugin_files import watch
from .plugin_patches import remember
from .plugin_source import MOVED as MOVED
from .plugin_source import PLUGIN_MODULE as PLUGIN_MODULE
from .plugin_source import PluginSource, read_source
from .plugin_source import current_module as current_module
from .warn import warn_once

if TYPE_CHECKING:
    from .registry import Registry


class Plugin:
    """A user's file that this process has executed, and what it registered.

    used: whether something was made of one of its entries.
    """

    def __init__(self, source: PluginSource) -> None:
        self.source = source
        self.used = False
        self.entries: list[tuple[Registry[Any], str, Any]] = []
        self.neighbours: list[Plugin] = []

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.source.name

    @property
    def parts(self) -> set[Plugin]:
        """It and every file next to it that it imports, directly or through another."""
        found, waiting = {self}, [self]
        while waiting:
            added = [plugin for plugin in waiting.pop().neighbours if plugin not in found]
            found.update(added)
            waiting += added
        return found

    @property
    def registers_nothing(self) -> bool:
        """Whether neither it nor a file that it imports registered anything."""
        return not any(part.entries for part in self.parts)

    @property
    def is_current(self) -> bool:
        """Whether what it registered is what the registries hold."""
        return all(registry.owner(name) is self for registry, name, _entry in self.entries)

    def enter(self) -> None:
        """Puts its entries, and those of the files that it imports, (again) into their registries."""
        for part in self.parts:
            for registry, name, entry in part.entries:
                if registry.owner(name) is not part:
                    registry.enter(name, entry, part)

    def withdraw(self) -> None:
        """Takes its entries out."""
        for registry, name, _entry in self.entries:
            registry.remove(name, self)


_plugins: dict[str, Plugin] = {}
"""Everything that was loaded, by the names of the modules."""
_loading: list[Plugin] = []
_environment: dict[str, tuple[tuple[int, int], Plugin | None]] = {}
"""What came of each file of `HF_ARCH_PLUGINS`, with its time and size then; None where another version was there."""
_loads_environment = False
registries: list[Registry[Any]] = []
"""All registries of this process; each enters itself."""


class _AnotherVersion(ConfigError):
    """A file of `HF_ARCH_PLUGINS` of which a recipe or a run brought its own version."""


def loading_plugin() -> Plugin | None:
    """The plugin whose file is being executed, to which whatever is registered now belongs. What a module of the
    package registers, which a plugin is the first to import, is not the plugin's."""
    return _loading[-1] if _loading and not _package_is_imported() else None


def _package_is_imported() -> bool:
    """Whether the innermost module whose body this thread executes is one of the package."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            return str(frame.f_globals.get("__name__")).startswith(f"{__name__.partition('.')[0]}.")
        frame = frame.f_back  # type: ignore[assignment]
    return False


def load_plugin(path: str | os.PathLike, *, reload: bool = False) -> Plugin:
    """Import a user's file, so that what it registers can be named in configs. The same text is executed once.

    Args:
        path: the file. Where it was changed since this process loaded it, the loaded version stays, which is said.
        reload: take the changed file instead, also where models were made of the version before.

    Raises:
        ConfigError: the file does not exist, is not Python by its name, raises an error, whose line is named, or is
            another version of a file of this name that something in this process was made of.
    """
    source = read_source(path)
    before = [plugin for plugin in _plugins.values() if plugin.source.path == source.path and plugin.entries]
    if not reload and source.module not in _plugins:
        for plugin in before:
            if plugin.used and plugin.is_current:
                warn_once(
                    source.digest,
                    "plugin %s: the file was changed after this process loaded it; the version that was loaded "
                    "stays in use (start a new process, or load_plugin(path, reload=True))",
                    source.name,
                )
                return plugin
    if reload:
        for plugin in before:
            plugin.used = False
    return load_source(source)


def load_plugins(paths: Iterable[str | os.PathLike]) -> list[Plugin]:
    """All of these, for one config. Raises `ConfigError` as `load_plugin` does, and where two of them are versions of
    each other."""
    loaded = [load_plugin(path) for path in paths]
    for plugin in loaded:
        _warn_of_nothing(plugin)
    for plugin in loaded:
        for registry, name, _entry in plugin.entries:
            if registry.owner(name) is not plugin:
                raise ConfigError(
                    f"plugins: {plugin.source.path} and {_place(registry.owner(name))} both register the "
                    f"{registry.kind} {name!r}; choose another name"
                )
    return loaded


def _warn_of_nothing(plugin: Plugin) -> None:
    """Says once of a file that registers nothing that it does not: it may be imported for something else."""
    if plugin.registers_nothing:
        if not registries:
            importlib.import_module("hf_arch.core.registry")  # by name, so that no bundle takes that module along
        warn_once(
            f"{plugin.source.module} registers nothing",
            "plugin %s: registers nothing, so no name of a config can mean anything in it; allowed: "
            "@REGISTRY.register(NAME) with a registry of hf_arch.core.registry (%s)",
            plugin.name,
            ", ".join(sorted(registry.kind for registry in registries)),
        )


def load_source(source: PluginSource) -> Plugin:
    """The same from a text that was read already. Raises `ConfigError` as `load_plugin` does."""
    if (known := _plugins.get(source.module)) is not None:
        known.source = source  # the same text, from where it was asked for last
        if known not in _loading:
            known.enter()
        return known
    plugin = _plugins[source.module] = Plugin(source)
    module = ModuleType(source.module)
    module.__file__ = str(source.path)
    module.__spec__ = ModuleSpec(source.module, None, origin=str(source.path))
    sys.modules[source.module] = module
    watch()
    remember()
    try:
        for neighbour in source.neighbours.values():
            plugin.neighbours.append(load_source(neighbour))
        _loading.append(plugin)
        try:
            exec(compile(source.program(), str(source.path), "exec", dont_inherit=True), module.__dict__)
        finally:
            _loading.pop()
    except BaseException as error:
        plugin.withdraw()
        del sys.modules[source.module], _plugins[source.module]
        if isinstance(error, ConfigError) or not isinstance(error, Exception):
            raise
        raise ConfigError(f"plugin: {source.path}: {plugin_line(error)}{type(error).__name__}: {error}") from error
    return plugin


def make_room(holder: Plugin, registry: Registry[Any], name: str, new: Plugin | None) -> None:
    """Withdraws `holder` of an entry that `new` is about to register. Raises `ConfigError` where it may not: the two
    are different plugins, or something was made of the holder."""
    if new is None or new.name != holder.name:
        raise ConfigError(
            f"{registry.kind}: {name!r} is registered already by plugin {holder.name}; choose another name"
        )
    if _loads_environment:
        raise _AnotherVersion(f"plugin {new.name}: another version of it is there")
    if holder.used:
        raise ConfigError(
            f"plugin {new.name}: {_place(holder)} and {_place(new)} are two versions of it, and this process has used "
            f"the first for {registry.kind} {name!r}; use the other in a process of its own, or under another name"
        )
    holder.withdraw()


def _place(plugin: Plugin | None) -> str:
    return "the package" if plugin is None else f"{plugin.source.path} (sha256 {plugin.source.digest[:8]})"


def used_plugins(values: object, named: Iterable[Plugin]) -> list[Plugin]:
    """The plugins that a run with these nested `values` uses, sorted by name: those that registered a name which stands
    anywhere in the values, or which another used one may look up; and of `named` also those that registered nothing,
    whatever they are there for.
    """
    load_environment_plugins()
    named = list(named)
    found = {plugin for plugin in named if plugin.registers_nothing}
    strings = set(_strings(values))
    while True:
        owners = {owner for registry in registries for name in strings if (owner := registry.owner(name)) is not None}
        importers = {plugin for plugin in named if owners & plugin.parts}
        added = owners | importers
        if added <= found:
            break
        strings = strings.union(*(plugin.source.strings() for plugin in added - found))
        found |= added
    return sorted(found, key=lambda plugin: (plugin.name, plugin.source.digest))


def _strings(node: object) -> Iterator[str]:
    """Every text in nested mappings and lists, keys too; of a pattern's `gla*3` the name alone."""
    if isinstance(node, str):
        yield node
        yield node.partition("*")[0].strip()
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key)
            yield from _strings(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _strings(item)


@contextmanager
def separate_plugins() -> Iterator[None]:
    """What is loaded inside may be other versions of what was loaded outside, which is there again afterwards: for
    commands that take up one run after the other."""
    entries = {registry.kind: registry.snapshot() for registry in registries}
    used = {plugin: plugin.used for plugin in _plugins.values()}
    for plugin in used:
        plugin.used = False
    try:
        yield
    finally:
        for registry in registries:
            registry.restore(entries.get(registry.kind, ({}, {})))  # one of a module that was imported inside
        for plugin in _plugins.values():
            plugin.used = used.get(plugin, False)


def loaded_plugins() -> list[PluginSource]:
    """The text of the files that this process has imported, in the order of loading; of several versions of one, that
    which is in effect."""
    return [plugin.source for plugin in _plugins.values() if plugin.is_current]


def plugin_of_module(module: str) -> Plugin | None:
    """The plugin that became this module."""
    return _plugins.get(module)


def plugin_line(error: BaseException) -> str:
    """`line 12: ` for the last line of a user's file in the traceback of `error`; empty where there is none."""
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith(PLUGIN_MODULE)
    ]
    return f"line {lines[-1]}: " if lines else ""


def plugin_error(error: BaseException) -> str:
    """An error of a user's code as part of one line: `line 12: KeyError: 'labels'`."""
    said = " ".join(str(error).split())
    return f"{plugin_line(error)}{type(error).__name__}{f': {said}' if said else ''}"


def environment_plugins() -> list[str]:
    """The files that `HF_ARCH_PLUGINS` names."""
    return [path for path in (read("HF_ARCH_PLUGINS") or "").split(os.pathsep) if path]


def is_from_environment(plugin: Plugin) -> bool:
    """Whether `HF_ARCH_PLUGINS` names the file of a plugin, or one that imports it."""
    named = {read_source(path).path for path in environment_plugins()}
    return any(plugin in other.parts for other in _plugins.values() if other.source.path in named)


def load_environment_plugins() -> None:
    """Import the files that `HF_ARCH_PLUGINS` names, but for those of which a recipe or a run brought its own version:
    that one is used."""
    global _loads_environment
    if _loads_environment or _loading:
        return
    _loads_environment = True
    try:
        for path in environment_plugins():
            _load_from_environment(path)
    finally:
        _loads_environment = False


def _load_from_environment(path: str) -> None:
    file = Path(path).expanduser()
    state = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)
    known = _environment.get(path)
    if known is not None and known[0] == state and (known[1] is None or known[1].is_current):
        return
    try:
        _environment[path] = state, load_plugin(path)
    except _AnotherVersion:
        for plugin in [plugin for plugin in _plugins.values() if plugin.source.path == file.resolve()]:
            plugin.withdraw()
        _environment[path] = state, None
