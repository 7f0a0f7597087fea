"""What a corpus is: a name, an attribution, a fingerprint (of the text and of what is held out) and documents.

Documents are read as a stream or one part of several. Corpora are small picklable values, so that worker processes
open them themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

SPLITS = ("train", "validation")


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
