"""Finds the corpus that a recipe names: an entry of `CORPORA` (`hf_arch.data.corpus`), or files of the user's own."""

from __future__ import annotations

import os
from pathlib import Path

from hf_arch.core.errors import ConfigError, nearest
from hf_arch.core.plugins import load_environment_plugins
from hf_arch.core.registry import CORPORA

# Imported for the corpora that they register.
from hf_arch.data import hub, python_docs, shakespeare  # noqa: F401
from hf_arch.data.cache import user_path
from hf_arch.data.corpus import Corpus
from hf_arch.data.local_files import LocalFiles
from hf_arch.data.options import DataOptions
from hf_arch.data.store import META


def open_corpus(name: str, options: DataOptions, cache: Path, *, progress: bool = True) -> Corpus:
    """The corpus of that name or path; downloads it if needed.

    Raises:
        ConfigError: no such name or path, nothing readable there, or a download that failed.
    """
    if name not in CORPORA:
        load_environment_plugins()
    if name in CORPORA:
        return CORPORA.get(name)(options, cache, progress=progress)
    path = user_path(name)
    if (path / META).is_file():
        raise ConfigError(f"data.corpus: {name!r} is tokenised already; give the text that it was made from")
    if path.exists() or any(letter in name for letter in "*?["):
        return LocalFiles.open(name, options, cache, progress=progress)
    if os.sep in name or path.suffix:
        near = nearest(path.name, (entry.name for entry in path.parent.glob("*")))
        hint = f"; nearest: {str(path.parent / near)!r}" if near else ""
        raise ConfigError(f"data.corpus: no file or folder {name!r}{hint}; allowed: a path, {', '.join(CORPORA)}")
    near = nearest(name, CORPORA)
    hint = f"nearest: {near!r}; " if near else ""
    raise ConfigError(
        f"data.corpus: {name!r} is not known; {hint}allowed: {', '.join(CORPORA)}, or the path of a file or folder"
    )
