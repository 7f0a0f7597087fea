"""A folder of files that is written whole or not at all, and that never replaces what a person changed in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json, temporary_name

MANIFEST = "manifest.json"
BYPRODUCTS = (".aux", ".log", ".out", ".toc", ".bbl", ".blg", ".pdf", ".fls", ".fdb_latexmk", ".synctex.gz")
"""What compiling paper.tex leaves next to it: no reason to keep a folder."""


def write_folder(path: Path, write: Callable[[Path], None]) -> Path:
    """Calls `write` with an empty folder, which then takes the name `path`; on an error nothing of it stays.

    An earlier folder of ours is replaced. Raises ConfigError where `path` is a file, or a folder that holds anything
    which was not written by an earlier call, or was changed since.
    """
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = temporary_name(path), temporary_name(path)
    try:
        new.mkdir()
        write(new)
        hashes = {str(file.relative_to(new)): _sha256(file) for file in _files(new)}
        (new / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=2) + "\n", encoding="utf-8")
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return path


def check_replaceable(path: Path) -> None:
    """Raises ConfigError where a folder could not be written at `path` without losing something."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"output: {path} is a file; give the name of a folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / MANIFEST).is_file():
        raise ConfigError(f"output: {path} contains other files; give the name of a new folder")
    hashes = read_json(path / MANIFEST).get("sha256") or {}
    for file in _files(path):
        name = str(file.relative_to(path))
        if name == MANIFEST or (name not in hashes and name.startswith("paper") and name.endswith(BYPRODUCTS)):
            continue
        if hashes.get(name) != _sha256(file):
            what = "was changed since it was written" if name in hashes else "was added to it"
            raise ConfigError(f"output: {path}: {name} {what}; give the name of a new folder, or move it away")


def write_text(path: Path, text: str) -> None:
    """A file with its folders; what UTF-8 has no form for (a lone surrogate) by its escape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a link"
