"""Users' own files: imported for what they register, also where they name modules by the paths of earlier versions."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import logging
import os
import sys
import traceback
from pathlib import Path

from ..environment import read
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


def _provide_moved_modules(file: Path) -> None:
    """Make the modules that a plugin imports by old names importable under them, and say so once."""
    imported = {
        node.module
        for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file)))
        if isinstance(node, ast.ImportFrom) and node.module and current_module(node.module) != node.module
    }
    for name in sorted(imported):
        parts = name.split(".")
        for end in range(2, len(parts) + 1):
            old = ".".join(parts[:end])
            sys.modules.setdefault(old, importlib.import_module(current_module(old)))
        logging.getLogger("hf_arch").warning(
            "warning: plugin %s: %s is called %s now; the old name works until version 0.3",
            *(file.name, name, current_module(name)),
        )


def load_plugin(path: str | os.PathLike) -> None:
    """Import a user's file, so that what it registers can be named in configs. Loading the same file twice does
    nothing.

    Raises:
        ConfigError: the file does not exist, is not Python by its name, or raises an error, whose line is named.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"plugin: no file at {str(path)!r}")
    module_name = f"{PLUGIN_MODULE}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugin: {str(path)!r} is not a Python file; its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        _provide_moved_modules(file)
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, ConfigError) or not isinstance(error, Exception):
            raise
        raise ConfigError(f"plugin: {path}: {plugin_line(error)}{type(error).__name__}: {error}") from error


def loaded_plugins() -> list[str]:
    """The files that `load_plugin` has imported in this process, in the order of loading."""
    modules = [module for name, module in sys.modules.items() if name.startswith(PLUGIN_MODULE)]
    return [module.__file__ for module in modules if module.__file__ is not None]


def plugin_line(error: BaseException) -> str:
    """`line 12: ` for the last line of a user's file on the way to `error`; empty where there is none."""
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith(PLUGIN_MODULE)
    ]
    return f"line {lines[-1]}: " if lines else ""


def load_environment_plugins() -> None:
    """Import the files that `HF_ARCH_PLUGINS` names."""
    for path in filter(None, (read("HF_ARCH_PLUGINS") or "").split(os.pathsep)):
        load_plugin(path)
