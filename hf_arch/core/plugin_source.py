"""The text of a user's file and of the files next to it that it imports, read once: what is hashed, run and archived.

A plugin may import other files of its folder, by `from helper import f` or `from .helper import f`. Such a file becomes
a module of its own, whose name ends in a hash of its text, and the import is made to point there: two versions of one
helper never meet under one name.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .errors import ConfigError

PLUGIN_MODULE = "hf_arch_plugin_"
"""How the names of modules made of users' files begin."""
MOVED = {
    "hf_arch.errors": "hf_arch.core.errors",
    "hf_arch.registry": "hf_arch.core.registry",
    "hf_arch.options": "hf_arch.core.options",
    "hf_arch.mixers": "hf_arch.layers.mixers",
    "hf_arch.architectures": "hf_arch.models.architectures",
    "hf_arch.modeling.cache": "hf_arch.layers.state",
    "hf_arch.modeling.layout": "hf_arch.layers.layout",
    "hf_arch.modeling": "hf_arch.models",
    "hf_arch.components.ffn": "hf_arch.layers.ffns.ffn",
    "hf_arch.components.moe": "hf_arch.layers.ffns.moe",
    "hf_arch.components.experts": "hf_arch.layers.ffns.experts",
    "hf_arch.components.channel_mix": "hf_arch.layers.ffns.channel_mix",
    "hf_arch.components.channel_mix7": "hf_arch.layers.ffns.channel_mix7",
    "hf_arch.components": "hf_arch.layers",
    "hf_arch.costs.model": "hf_arch.models.cost",
    "hf_arch.costs": "hf_arch.models",
}
"""Modules and folders that plugins import by the paths of version 0.1; they work until version 0.3."""


def current_module(name: str) -> str:
    """The name that a module of ours has today, `name` itself where it has not moved."""
    for old in sorted(MOVED, key=len, reverse=True):
        if name == old or name.startswith(f"{old}."):
            return MOVED[old] + name.removeprefix(old)
    return name


@dataclass(frozen=True)
class PluginSource:
    """A plugin file as it was read.

    path: where it lay. files: the bytes of the file and of every file next to it that it imports, directly or through
    another, by name; the file itself first.
    """

    path: Path
    files: Mapping[str, bytes]

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def text(self) -> bytes:
        """What the file says."""
        return self.files[self.name]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """sha256 of each file by its name."""
        return {name: hashlib.sha256(text).hexdigest() for name, text in self.files.items()}

    @cached_property
    def digest(self) -> str:
        """One hash over all files: that of the file itself where it imports no other."""
        if len(self.files) == 1:
            return self.hashes[self.name]
        return hashlib.sha256(
            "\n".join(f"{name} {self.hashes[name]}" for name in sorted(self.files)).encode()
        ).hexdigest()

    @property
    def module(self) -> str:
        """The name of the module that it becomes: the same for the same text, wherever it lies."""
        return f"{PLUGIN_MODULE}{self.path.stem}_{self.digest[:8]}"

    @cached_property
    def neighbours(self) -> dict[str, PluginSource]:
        """The files next to it that it imports itself, by the names that it imports them by."""
        found = {}
        for stem in _imported(ast.parse(self.text, filename=str(self.path))):
            name = f"{stem}.py"
            if name in self.files and name != self.name:
                found[stem] = PluginSource(self.path.with_name(name), _closure(name, self.files))
        return found

    def strings(self) -> set[str]:
        """Every text constant in its files: by one of these a plugin may look up what another registers."""
        trees = [ast.parse(text) for text in self.files.values()]
        nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
        return {node.value for node in nodes if isinstance(node.value, str)}

    def program(self) -> ast.Module:
        """What is executed: the text with its imports of neighbours pointing to their modules, and with the modules
        that it imports by old names importable under these, which is reported once."""
        tree = ast.parse(self.text, filename=str(self.path))
        _provide_moved_modules(tree, self.name)
        modules = {stem: source.module for stem, source in self.neighbours.items()}
        return ast.fix_missing_locations(_NeighbourImports(modules).visit(tree))


def read_source(path: str | os.PathLike) -> PluginSource:
    """Reads a plugin file and what it imports next to it.

    Raises:
        ConfigError: there is no such file, it is not Python by its name, it cannot be parsed, or it imports a folder.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"plugin: no file at {str(path)!r}")
    if file.suffix != ".py":
        raise ConfigError(f"plugin: {str(path)!r} is not a Python file; its name should end in .py")
    files: dict[str, bytes] = {}
    waiting = [file.name]
    while waiting:
        name = waiting.pop(0)
        if name in files:
            continue
        files[name] = file.with_name(name).read_bytes()
        try:
            tree = ast.parse(files[name], filename=str(file.with_name(name)))
        except (SyntaxError, ValueError) as error:
            line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
            raise ConfigError(f"plugin: {file.with_name(name)}: {line}{type(error).__name__}: {error}") from error
        waiting += [f"{stem}.py" for stem in _imported(tree) if _is_beside(file.parent, stem, name)]
    return PluginSource(file, files)


def _closure(name: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """`name` and what it imports of `files`, directly or through another."""
    found: dict[str, bytes] = {}
    waiting = [name]
    while waiting:
        if (one := waiting.pop(0)) not in found:
            found[one] = files[one]
            waiting += [f"{stem}.py" for stem in _imported(ast.parse(files[one])) if f"{stem}.py" in files]
    return found


def imported_names(text: bytes) -> set[str]:
    """First parts of the names of modules that a Python text imports."""
    return set(_imported(ast.parse(text)))


def _imported(tree: ast.AST) -> Iterator[str]:
    """First parts of the names of modules that could be files next to this one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level <= 1:
            if node.module is not None:
                yield node.module.partition(".")[0]
            else:
                yield from (alias.name for alias in node.names)


def _is_beside(folder: Path, stem: str, importer: str) -> bool:
    """Whether `import stem` means the file of that name in `folder`, and no installed module."""
    if f"{stem}.py" == importer or stem in sys.stdlib_module_names:
        return False
    if not (folder / f"{stem}.py").is_file():
        if (folder / stem).is_dir() and any((folder / stem).glob("*.py")) and not _is_installed(stem, folder):
            raise ConfigError(
                f"plugin: {folder / importer}: imports the folder {stem}/ next to it, of which runs keep no copy; "
                f"import single files, or install {stem} as a package"
            )
        return False
    return not _is_installed(stem, folder)


def _is_installed(stem: str, folder: Path) -> bool:
    try:
        spec = importlib.util.find_spec(stem)
    except (ImportError, ValueError):
        return False
    origin = None if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), None)
    return origin is not None and folder not in (Path(origin).parent, Path(origin).parent.parent)


class _NeighbourImports(ast.NodeTransformer):
    """Lets imports of neighbours name their modules; `modules` are these by the imported name."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self.modules = modules

    def visit_Import(self, node: ast.Import) -> ast.Import:
        names = [
            ast.alias(self.modules[alias.name], alias.asname or alias.name) if alias.name in self.modules else alias
            for alias in node.names
        ]
        return ast.copy_location(ast.Import(names), node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | list[ast.stmt]:
        if node.level <= 1 and node.module in self.modules:
            return ast.copy_location(ast.ImportFrom(self.modules[str(node.module)], node.names, 0), node)
        if node.level == 1 and node.module is None and any(alias.name in self.modules for alias in node.names):
            return [
                ast.copy_location(ast.Import([ast.alias(self.modules[alias.name], alias.asname or alias.name)]), node)
                for alias in node.names
                if alias.name in self.modules
            ]
        return node


def _provide_moved_modules(tree: ast.Module, file: str) -> None:
    imported = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and current_module(node.module) != node.module
    }
    for name in sorted(imported):
        parts = name.split(".")
        for end in range(2, len(parts) + 1):
            old = ".".join(parts[:end])
            sys.modules.setdefault(old, importlib.import_module(current_module(old)))
        logging.getLogger("hf_arch").warning(
            "warning: plugin %s: %s is called %s now; the old name works until version 0.3",
            *(file, name, current_module(name)),
        )
