"""What every corpus is: a name, an attribution, a fingerprint, and documents in two splits.

Corpora are entries of `CORPORA`, and a plugin file may add its own:

    from hf_arch.core.registry import CORPORA
    from hf_arch.data.corpus import part_range

    class Notes:
        name, attribution = "notes", "My notes, CC0."

        def fingerprint(self):
            return "notes, version 1"

        def documents(self, split, part=0, parts=1):
            texts = [...]
            yield from (texts[number] for number in part_range(len(texts), part, parts))

    @CORPORA.register("notes")
    def notes(options, cache, *, progress=True):
        "My notes."
        return Notes()

`data.corpus: notes` then works wherever a corpus is named. `hf_arch.data.hub.register_hub_corpus` adds one of the Hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from hf_arch.data.options import DataOptions

SPLITS = ("train", "validation")


class Corpus(Protocol):
    """Text to train on and text held out. Corpora are small picklable values: worker processes open them again."""

    @property
    def name(self) -> str: ...

    @property
    def attribution(self) -> str:
        """Source and licence, for the model card."""
        ...

    def fingerprint(self) -> str:
        """Hash or version of the text and of its split, found without reading more than needed.

        Token shards are cached under it: other text with the same fingerprint would not be tokenised again.
        """
        ...

    def documents(self, split: str, part: int = 0, parts: int = 1) -> Iterator[str]:
        """The documents of `train` or `validation`; of `parts` contiguous parts, the one numbered `part`."""
        ...


class OpenCorpus(Protocol):
    """An entry of `CORPORA`; the first line of its docstring describes the corpus."""

    def __call__(self, options: DataOptions, cache: Path, *, progress: bool = True) -> Corpus:
        """Opens the corpus, downloading it into `cache` if needed.

        Raises:
            ConfigError: an option that the corpus does not support, or a download that failed.
        """
        ...


def part_range(size: int, part: int, parts: int) -> range:
    """The numbers of one of `parts` contiguous, near-equal parts of range(size)."""
    return range(size * part // parts, size * (part + 1) // parts)
