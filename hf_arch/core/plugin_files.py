"""Files that plugins read besides their source: a table, a JSON, a tokenizer, weights, a module from elsewhere.

The text of a plugin is hashed as it is loaded; what it reads while it is imported, while the model is built and while
it trains decides as much. Two things are looked at, neither of which costs a step anything:

    what is opened   every `open` of this process raises an audit event (PEP 578). One for reading with a frame of a
                     plugin on the stack is kept: a path and no more, until `files_read` hashes it.
    what is named    libraries that read files outside Python (safetensors, tokenizers) raise no event. A text in the
                     plugin's source, or in the recipe, that is the path of a file counts as read.

Left out are installed packages, whose versions are recorded (`packages_of`), and the text that a corpus is made of,
which has its own fingerprint (`unwatched`).
"""

from __future__ import annotations

import hashlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import source_from_cache
from inspect import currentframe
from pathlib import Path
from types import FrameType
from typing import Any

from .plugin_source import PLUGIN_MODULE, PluginSource, imported_names


@dataclass(frozen=True)
class ReadFile:
    """A file that a plugin reads. below: whether it lies in the plugin's folder, or below it. earlier: whether it was
    read for an earlier run of this process, and not since: the plugin may still hold what stood there."""

    path: Path
    sha256: str
    below: bool
    earlier: bool = False


WEIGHTS = frozenset(
    (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".npy", ".pkl", ".pickle", ".gguf", ".h5", ".msgpack")
)
"""How the names of files end that may hold what was learned."""
MODEL_CONFIG = "config.json"
_opened: dict[str, dict[str, str | None]] = {}
"""{module of a plugin: {path: hash}}; None until it is hashed, and again after the file was opened once more."""
_at_import: set[tuple[str, str]] = set()
"""(module, path) of what was opened while a plugin was imported, once in a process: it counts for every run."""
_earlier: set[tuple[str, str]] = set()
"""The same of what runs that have ended opened, and none since."""
_paused = 0
_watches = False
_BUILD_CACHES = ("torchinductor", f"{os.sep}triton")


def watch() -> None:
    """From now on keeps what plugins open. To be called before the first of them is executed."""
    global _watches
    if not _watches:
        _watches = True
        sys.addaudithook(_audit)


@contextmanager
def unwatched() -> Iterator[None]:
    """What is opened inside is not kept."""
    global _paused
    _paused += 1
    try:
        yield
    finally:
        _paused -= 1


def read_again(path: Path) -> None:
    """Keeps a file that is read without being opened: one that was mapped before, as the rows of the data are."""
    if _watches and not _paused and (module := _plugin_on_stack(currentframe())) is not None:
        _keep(module, os.path.abspath(path))


def end_run() -> None:
    """What was opened by now, but at imports, was for the run that has ended here."""
    _earlier.update((module, path) for module, paths in _opened.items() for path in paths)
    _earlier.difference_update(_at_import)


def _keep(module: str, path: str) -> None:
    _opened.setdefault(module, {})[path] = None
    _earlier.discard((module, path))
    if _is_imported(currentframe()):
        _at_import.add((module, path))


def _is_imported(frame: FrameType | None) -> bool:
    """Whether the body of a plugin's module is being executed."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and str(frame.f_globals.get("__name__")).startswith(PLUGIN_MODULE):
            return True
        frame = frame.f_back
    return False


def files_read(source: PluginSource, texts: Iterable[str] = ()) -> dict[str, ReadFile]:
    """{name: file} of what this plugin has read so far, and of what it or `texts` name.

    A name is the path from the plugin's folder where the file lies below it, else the name of the file alone.
    """
    folder = folder_of(source)
    own = {str(folder / name) for name in source.files}
    digests: dict[str, str | None] = {}
    current: set[str] = set()
    for module in _modules(source):
        opened = _opened.get(module, {})
        for path in list(opened):
            opened[path] = opened[path] or _digest(path)
        digests |= opened
        current |= {path for path in opened if (module, path) not in _earlier}
    loaded = {Path(path).parent for path in digests if Path(path).name == MODEL_CONFIG}
    weights = {path for place in loaded for path in _weights_in(place)}
    named = {*_named(source, texts, folder), *_imported_files(source)}
    current |= {*named, *(path for path in weights if str(Path(path).with_name(MODEL_CONFIG)) in current)}
    digests |= {path: _digest(path) for path in {*weights, *named} - digests.keys()}
    found: dict[str, ReadFile] = {}
    for path, digest in sorted(digests.items()):
        if path in own or digest is None:
            continue
        below = Path(path).is_relative_to(folder)
        name = Path(path).relative_to(folder).as_posix() if below else Path(path).name
        if name in found and found[name].sha256 == digest:
            continue
        key = name if name not in found else f"{digest[:8]}/{name}"
        found[key] = ReadFile(Path(path), digest, below, earlier=path not in current)
    return found


def opened_beside(source: PluginSource) -> list[str]:
    """Paths, from the folder of this plugin, of the files below it that it was seen to open; without Python."""
    opened = {path for module in _modules(source) for path in _opened.get(module, {})}
    found = files_read(source).items()
    return sorted(name for name, file in found if file.below and str(file.path) in opened and file.path.suffix != ".py")


def _modules(source: PluginSource) -> set[str]:
    """The modules that a plugin and the files next to it that it imports became."""
    found, waiting = set(), [source]
    while waiting:
        one = waiting.pop()
        if one.module not in found:
            found.add(one.module)
            waiting += one.neighbours.values()
    return found


def packages_of(source: PluginSource) -> list[str]:
    """Top-level names of what the files of a plugin import, of installed packages; without the standard library."""
    names = {name for text in source.files.values() for name in imported_names(text)}
    left_out = {"hf_arch", *sys.stdlib_module_names}
    return sorted(name for name in names if name not in left_out and f"{name}.py" not in source.files)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or _paused or not _opened_to_read(*arguments[1:3]):
        return
    path, module = arguments[0], _plugin_on_stack(currentframe())
    if module is None or not isinstance(path, (str, bytes)):
        return
    file = os.path.abspath(os.fsdecode(path))
    if file.endswith(".pyc"):
        with suppress(ValueError):
            file = source_from_cache(file)
    if not _is_installed(file):
        _keep(module, file)


def _opened_to_read(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return "r" in mode
    return not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_CREAT)


def _plugin_on_stack(frame: FrameType | None) -> str | None:
    """The module of the plugin that is being executed, directly or by what it called."""
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if isinstance(name, str) and name.startswith(PLUGIN_MODULE):
            return name
        frame = frame.f_back
    return None


@cache
def _installed() -> tuple[str, ...]:
    """Folders of what is installed, of the package itself, and of what the system makes up."""
    folders = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), site.getusersitepackages()]
    package = Path(__file__).resolve().parent.parent
    real = {os.path.realpath(folder) for folder in folders if folder}
    prefixes = {folder for folder in (*folders, *real) if folder and folder != os.sep}
    return tuple(f"{folder.rstrip(os.sep)}{os.sep}" for folder in (*prefixes, str(package), "/proc", "/sys", "/dev"))


@cache
def _is_installed(file: str) -> bool:
    if any(part in file for part in _BUILD_CACHES) or f"{os.sep}site-packages{os.sep}" in file:
        return True
    return file.startswith(_installed())


def folder_of(source: PluginSource) -> Path:
    """Where the plugin was executed from; it may have been asked for from another place since."""
    place = getattr(sys.modules.get(source.module), "__file__", None)
    return (Path(place) if place else source.path).parent


def _named(source: PluginSource, texts: Iterable[str], folder: Path) -> Iterator[str]:
    """The files whose path, from the plugin's folder, from here, or whole, is one of these texts."""
    for text in {*source.strings(), *texts}:
        if not 2 < len(text) < 256 or "\n" in text or "\0" in text:
            continue
        for place in (folder / text.lstrip(os.sep), Path(text).expanduser()):
            path = os.path.abspath(place)
            if os.path.isfile(path) and not _is_installed(path):
                yield path
            elif path != str(folder) and os.path.isdir(path):
                yield from _weights_in(Path(path))


def _weights_in(folder: Path) -> Iterator[str]:
    """The weights of a model folder: they are read by libraries that raise no event."""
    if (folder / MODEL_CONFIG).is_file():
        yield from (str(file) for file in sorted(folder.iterdir()) if file.suffix in WEIGHTS and file.is_file())


def _imported_files(source: PluginSource) -> Iterator[str]:
    """Modules that the plugin imports and that are neither installed nor next to it: of a folder on the path."""
    names = set(packages_of(source))
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in names and (file := getattr(module, "__file__", None)):
            path = os.path.abspath(file)
            if path.endswith(".py") and not _is_installed(path):
                yield path


def _digest(path: str) -> str | None:
    """sha256 of a file; None where it is gone."""
    try:
        facts = os.stat(path)
        return _digest_of(path, facts.st_mtime_ns, facts.st_size, facts.st_ino)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _digest_of(path: str, *_facts: int) -> str:
    """The same: a file of weights is asked for by every run of a set, and read again only where it has changed."""
    with unwatched(), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
