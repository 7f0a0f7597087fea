"""The `data` section of a recipe, checked as soon as it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hf_arch.core.errors import ConfigError

SPECIAL_TOKENS = ("<|pad|>", "<|endoftext|>")
"""Special tokens of every tokenizer made here; a character tokenizer adds `<|unk|>`."""

SMALLEST_BPE = 256 + len(SPECIAL_TOKENS)
"""A byte-level BPE needs an entry for each byte, or some text could not be written."""


@dataclass(frozen=True)
class DataOptions:
    """What text a run learns from and how it becomes rows of tokens.

    corpus: a registered name (`hf_arch.data.corpus`), a path to a file, folder or glob of txt, jsonl or
        parquet, or a folder written by `hf-arch data prepare` (which brings its tokenizer).
    tokenizer: `char`, `byte`, `bpe` (each made from the train split), a path, or a Hub id.
    vocab_size: entries of a trained `bpe`, special tokens included.
    sequence_length: tokens in one row.
    isolate_documents: documents packed in one row do not see each other: `position_ids` restart at each document and
        the first label of a document is masked.
    text_column: the column of jsonl and parquet rows that holds the text.
    validation_fraction: share of local files held out at their end, by whole documents where that comes close to it.
        Corpora with a split of their own ignore it: they say what is held out.
    max_train_tokens, max_validation_tokens: take only the first so many tokens of a split.
    mixture: corpus name or path -> weight. Rows of the corpora are mixed in these proportions, by one tokenizer; the
        limits hold for each corpus, and `corpus` is not read.
    """

    corpus: str = "shakespeare"
    tokenizer: str = "bpe"
    vocab_size: int = 4096
    sequence_length: int = 256
    isolate_documents: bool = False
    text_column: str = "text"
    validation_fraction: float = 0.1
    max_train_tokens: int | None = None
    max_validation_tokens: int | None = None
    mixture: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for field in ("corpus", "tokenizer", "text_column"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise ConfigError(f"data.{field}: {value!r} is not a name or path; allowed: a text that is not empty")
        _check_integer("sequence_length", self.sequence_length, smallest=2)
        _check_integer("vocab_size", self.vocab_size, smallest=1)
        if self.tokenizer == "bpe" and self.vocab_size < SMALLEST_BPE:
            raise ConfigError(
                f"data.vocab_size: {self.vocab_size} is too small for a byte-level BPE; allowed: at least "
                f"{SMALLEST_BPE} (256 bytes and {len(SPECIAL_TOKENS)} special tokens); nearest: {SMALLEST_BPE}"
            )
        for field in ("max_train_tokens", "max_validation_tokens"):
            if getattr(self, field) is not None:
                _check_integer(field, getattr(self, field), smallest=1)
        if not isinstance(self.isolate_documents, bool):
            raise ConfigError(f"data.isolate_documents: {self.isolate_documents!r} is not known; allowed: true, false")
        fraction = self.validation_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise ConfigError(
                f"data.validation_fraction: {fraction!r} is not allowed; allowed: above 0 and below 1, such as 0.1"
            )
        if self.mixture is not None:
            self._check_mixture(self.mixture)

    @staticmethod
    def _check_mixture(mixture: object) -> None:
        if not isinstance(mixture, Mapping) or not mixture:
            raise ConfigError(f"data.mixture: {mixture!r} is not allowed; allowed: a map from corpus to weight")
        for name, weight in mixture.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ConfigError(f"data.mixture.{name}: {weight!r} is not a weight; allowed: a number above 0")


def _check_integer(field: str, value: object, *, smallest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"data.{field}: {value!r} is not a whole number; allowed: at least {smallest}")
    if value < smallest:
        raise ConfigError(f"data.{field}: {value} is too small; allowed: at least {smallest}; nearest: {smallest}")
