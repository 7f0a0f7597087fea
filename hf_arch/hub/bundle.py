"""The code of one model as a flat folder that `trust_remote_code=True` loads where hf_arch is not installed.

transformers copies a repository's modules only if they lie side by side and import each other by `from .x import y`.
So the closure of package imports is walked from the architecture's module and from those of the components that the
config names (a pattern may name mixers that its architecture does not import); every module becomes one file,
`hf_arch/ops/conv.py` as `ops_conv.py`, with its imports rewritten. The architecture's own file is called
`modeling_<model_type>.py`. Before it imports anything it refuses versions of transformers and torch with which it was
not tested, in one line.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hf_arch import __version__
from hf_arch.core.errors import ConfigError
from hf_arch.core.plugin_files import opened_beside
from hf_arch.core.plugins import PLUGIN_MODULE as PLUGIN
from hf_arch.core.plugins import current_module, plugin_of_module
from hf_arch.core.registry import ACTIVATIONS, ARCHITECTURES, NORMS, POSITIONS
from hf_arch.models.architectures.base import AUTO_CLASSES, Architecture
from hf_arch.models.configuration import ArchConfig

PACKAGE = "hf_arch"
VERSIONS = f"{PACKAGE}.versions"
KERNELS = f"{PACKAGE}.ops.native"
"""Whose `SOURCES` are read from files, which transformers does not copy: their texts take the place of that."""


@dataclass(frozen=True)
class Bundle:
    """Source text by file name, and the `auto_map` of config.json that points into it."""

    files: dict[str, str]
    auto_map: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write every file into `folder`, which exists."""
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")


def bundle(config: ArchConfig) -> Bundle:
    """The code that a model with this config needs, and no more.

    Raises:
        ConfigError: the config's class belongs to no registered architecture.
        ValueError: a module imports in a way that cannot be flattened; names file and line.
    """
    architecture = _architecture(config)
    entry = architecture.config.__module__
    sources: dict[str, _Source] = {}
    _collect(entry, sources)
    _collect(VERSIONS, sources)
    unreached = [(module, name) for module, name in _components(config) if module not in sources]
    for module, _ in unreached:
        _collect(module, sources)
    names = {entry: f"modeling_{config.model_type}"}
    for module in sources:
        names.setdefault(module, _flat_name(module))
    if len(set(names.values())) < len(names):
        twice = sorted(name for name in names.values() if list(names.values()).count(name) > 1)
        raise ValueError(f"two modules would both be written as {twice[0]}.py; rename one")
    extra = [f"from .{names[module]} import {name} as {name}" for module, name in unreached]
    guard = [
        f"from .{names[VERSIONS]} import require_supported_versions",
        f'require_supported_versions("this model (code of {PACKAGE} {__version__})", refuse_newer=True)',
    ]
    files = {
        f"{names[module]}.py": source.flattened(names, *((guard, extra) if module == entry else ([], [])))
        for module, source in sorted(sources.items())
    }
    auto_map = {"AutoConfig": f"{names[entry]}.{architecture.config.__name__}"}
    for kind, auto_class in AUTO_CLASSES.items():
        auto_map[auto_class.__name__] = f"{names[entry]}.{getattr(architecture, kind).__name__}"
    return Bundle(files, auto_map)


def _collect(module: str, sources: dict[str, _Source]) -> None:
    """Add `module` and everything of ours that it imports to `sources`."""
    if module not in sources:
        sources[module] = _Source(module) if module.startswith(PLUGIN) else _packaged(module)
        for target in sources[module].imports.values():
            _collect(target, sources)


def _architecture(config: ArchConfig) -> Architecture:
    for _, architecture in ARCHITECTURES.items():
        if architecture.config is type(config):
            return architecture
    raise ConfigError(f"model: {type(config).__name__} belongs to no registered architecture")


def _components(config: ArchConfig) -> list[tuple[str, str]]:
    """(module, name) of the registered classes that the config names, each once, those of other libraries left out."""
    layers = (*config.mixer_specs, *config.mixer_members, *config.ffn_specs, config.stream_spec, config.depth_spec)
    beside = (*config.embedding_specs, *config.site_specs, *config.loss_specs)
    used: list[Any] = [component for component, _ in (*layers, *beside, config.parametrization_spec)]
    used += [] if config.init_spec is None else [config.init_spec[0]]
    used += [NORMS.get(config.norm), POSITIONS.get(config.position), ACTIVATIONS.get(config.hidden_act)]
    return list(dict.fromkeys((part.__module__, part.__name__) for part in used if _is_ours(part.__module__)))


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == PACKAGE or module.startswith(PLUGIN)


def _flat_name(module: str) -> str:
    if module.startswith(PLUGIN):
        return f"plugin_{Path(str(sys.modules[module].__file__)).stem}"
    return module.removeprefix(f"{PACKAGE}.").replace(".", "_")


@cache
def _packaged(module: str) -> _Source:
    """A module of the package, which does not change once it is imported; a plugin is read anew each time."""
    return _Source(module)


class _Source:
    """One module's text, with its imports of other modules of ours found."""

    def __init__(self, module: str):
        self.module = module
        loaded = importlib.import_module(module)
        if hasattr(loaded, "__path__"):
            raise ValueError(f"{module} is a package: import from the module that defines the name, so that it bundles")
        self.plugin = plugin_of_module(module)  # whose text is what was run, also where the file was changed since
        if self.plugin is not None and (read := opened_beside(self.plugin.source)):
            raise ConfigError(
                f"{self.plugin.source.name}: reads {', '.join(read)} next to it, which a model that brings its code "
                "cannot take along; write the values into the plugin, or into options of its part"
            )
        text = Path(str(loaded.__file__)).read_bytes() if self.plugin is None else self.plugin.source.text
        self.lines = text.decode("utf-8").split("\n")
        self.tree = ast.parse("\n".join(self.lines))
        self.dropped = [node for node in ast.walk(self.tree) if isinstance(node, ast.If) and _is_type_checking(node)]
        self.imports = dict(self._imports(self.tree))

    def _imports(self, parent: ast.AST) -> Iterator[tuple[ast.ImportFrom, str]]:
        """(statement, dotted module) of every import of ours, also inside functions, but not under TYPE_CHECKING."""
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.Import) and any(_is_ours(self._module(alias.name)) for alias in node.names):
                raise ValueError(f"{self.module}:{node.lineno}: write `from x import y`, so that it bundles")
            if isinstance(node, ast.ImportFrom):
                if self.plugin is not None and node.module is None:
                    raise ValueError(f"{self.module}:{node.lineno}: write `from .x import y`, so that it bundles")
                target = self._resolve(node)
                if _is_ours(target):
                    yield node, target
            elif node not in self.dropped:
                yield from self._imports(node)

    def _module(self, name: str) -> str:
        """The module that an absolute import means: of ours, of a file next to a plugin, or of another library."""
        beside = {} if self.plugin is None else self.plugin.source.neighbours
        return beside[name].module if name in beside else current_module(name)

    def _resolve(self, node: ast.ImportFrom) -> str:
        if node.level == 0 or self.plugin is not None:
            return self._module(node.module or "")
        parts = self.module.split(".")[: -node.level]
        return ".".join([*parts, *filter(None, [node.module])])

    def flattened(self, names: dict[str, str], before: list[str], after: list[str]) -> str:
        """The text with every import of ours as `from .flat_name import ...`, and lines `before` and `after` all
        imports."""
        lines: list[str | None] = [*self.lines]
        for unneeded in self.dropped:
            _replace(lines, unneeded, None)
        for node in self.tree.body if self.module == KERNELS else ():
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SOURCES":
                texts = (f"    {name!r}: {text!r}," for name, text in sys.modules[KERNELS].SOURCES.items())
                _replace(lines, node, "\n".join(["SOURCES = {", *texts, "}"]))
        for node, target in self.imports.items():
            imported = ", ".join(ast.unparse(alias) for alias in node.names)
            _replace(lines, node, f"{' ' * node.col_offset}from .{names[target]} import {imported}")
        if before or after:
            imports = [node for node in self.tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
            last = max(node.end_lineno or 0 for node in imports)
            lines[last:last] = after
            first = next(node for node in imports if getattr(node, "module", "") != "__future__")
            lines[first.lineno - 1 : first.lineno - 1] = before
        origin = self.module.replace(".", "/") if not self.module.startswith(PLUGIN) else names[self.module]
        header = f"# {origin}.py of {PACKAGE} {__version__}, flattened for `trust_remote_code`."
        return "\n".join([header, *(line for line in lines if line is not None)])


def _replace(lines: list[str | None], node: ast.stmt, text: str | None) -> None:
    """Put `text` in the place of a statement; the other lines keep their numbers."""
    first, last = node.lineno - 1, node.end_lineno or node.lineno
    lines[first:last] = [text, *([None] * (last - first - 1))]


def _is_type_checking(node: ast.If) -> bool:
    """`if TYPE_CHECKING:` without an else: what it imports is for annotations only, and may not be needed."""
    return not node.orelse and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
