"""Token shards on disk: raw little-endian uint16 or uint32, memory-mapped by readers, described by one `meta.json`.

    <folder>/meta.json  tokenizer/  train-00000-of-00004.bin ...  validation-00000-of-00001.bin

A shard is written to a temporary file, hashed on the way, and renamed with its record beside it, so an interrupted
preparation goes on with the shards that it has. `meta.json` is written last: a folder that has it is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from hf_arch.data.cache import atomic_file, hash_file, write_atomic
from hf_arch.errors import ConfigError

FORMAT = 1
META = "meta.json"

_PIECE = 1 << 16
_BATCH = 1 << 22


@dataclass(frozen=True)
class ShardRecord:
    """What is known of one shard: its file name, the sums over it, and the sha256 of its bytes."""

    file: str
    tokens: int
    bytes: int
    documents: int
    sha256: str


@dataclass(frozen=True)
class StoreMeta:
    """`meta.json`: what the tokens were made from (`key`), and the shards of each split in order."""

    key: str
    corpus: str
    attribution: str
    tokenizer: str
    dtype: str
    eos_token_id: int
    splits: dict[str, list[ShardRecord]]

    def write(self, folder: Path) -> None:
        write_atomic(folder / META, json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode())

    def total(self, split: str, field: str) -> int:
        """Sum of `tokens`, `bytes` or `documents` over a split."""
        return sum(getattr(record, field) for record in self.splits[split])


def read_meta(folder: Path) -> StoreMeta | None:
    """The description of a whole store, or None where the folder is not one.

    Raises:
        ConfigError: `meta.json` is damaged or of another format.
    """
    path = folder / META
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ConfigError(f"data.corpus: {str(folder)!r} is of another format; delete it and prepare it again")
        splits = {name: [ShardRecord(**record) for record in shards] for name, shards in content.pop("splits").items()}
        return StoreMeta(splits=splits, **content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"data.corpus: {str(path)!r} is damaged; delete the folder and prepare it again") from error


def check_shards(folder: Path, meta: StoreMeta, *, checksums: bool) -> None:
    """Raises ConfigError naming the first shard that is missing, cut, or (with `checksums`) changed."""
    width = np.dtype(meta.dtype).itemsize
    for record in (record for shards in meta.splits.values() for record in shards):
        path = folder / record.file
        problem = None
        if not path.is_file():
            problem = "is missing"
        elif path.stat().st_size != record.tokens * width:
            problem = f"has {path.stat().st_size} bytes instead of {record.tokens * width}"
        elif checksums and hash_file(path) != record.sha256:
            problem = "is damaged (its sha256 has changed)"
        if problem:
            raise ConfigError(f"data.corpus: shard {str(path)!r} {problem}; delete the folder and prepare it again")


def shard_name(split: str, part: int, parts: int) -> str:
    return f"{split}-{part:05d}-of-{parts:05d}"


def token_dtype(vocab_size: int) -> str:
    """The narrowest type that holds every token, little-endian."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def write_shard(
    folder: Path,
    name: str,
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> ShardRecord:
    """Tokenises documents into one shard, or takes over the one that an earlier try has finished.

    Args:
        folder: where; `<name>.bin` and, until the store is whole, `<name>.json` with its record.
        documents: text; each is ended by the end-of-text token.
        limit: tokens after which to stop, within a document if need be.
        advance: told the number of tokens of each batch.

    Raises:
        ConfigError: more than one token in a thousand is unknown to the tokenizer.
    """
    path, record_path = folder / f"{name}.bin", folder / f"{name}.json"
    dtype = np.dtype(token_dtype(len(tokenizer)))
    if record_path.is_file():
        record = ShardRecord(**json.loads(record_path.read_text(encoding="utf-8")))
        if path.is_file() and path.stat().st_size == record.tokens * dtype.itemsize:
            advance(record.tokens)
            return record
    encoder = _Encoder(tokenizer, limit)
    digest = hashlib.sha256()
    with atomic_file(path) as file:
        for tokens in encoder.encode(documents):
            content = tokens.astype(dtype).tobytes()
            digest.update(content)
            file.write(content)
            advance(tokens.size)
        encoder.check_unknown()
    record = ShardRecord(path.name, encoder.tokens, encoder.bytes, encoder.documents, digest.hexdigest())
    write_atomic(record_path, json.dumps(asdict(record)).encode())
    return record


class _Encoder:
    """Encodes documents in batches, and counts what it has given."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, limit: int | None) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        # Text that spells a special token stays text: only real borders between documents are end-of-text tokens.
        self.backend.encode_special_tokens = True
        self.eos = tokenizer.eos_token_id
        unknown = tokenizer.unk_token_id
        self.unknown_id = None if unknown == self.eos else unknown
        self.limit = limit
        self.tokens = self.bytes = self.documents = self.unknown = 0
        self.unknown_characters: set[str] = set()

    def encode(self, documents: Iterable[str]) -> Iterator[np.ndarray]:
        batch: list[tuple[str, bool]] = []
        size = 0
        for document in documents:
            for piece in _pieces(document):
                batch.append(piece)
                size += len(piece[0])
            if size >= _BATCH:
                yield self._encode_batch(batch)
                batch, size = [], 0
                if self.limit is not None and self.tokens >= self.limit:
                    return
        if batch:
            yield self._encode_batch(batch)

    def _encode_batch(self, batch: list[tuple[str, bool]]) -> np.ndarray:
        encodings = self.backend.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
        parts: list[list[int]] = []
        for (text, last), encoding in zip(batch, encodings, strict=True):
            ids = encoding.ids
            if self.unknown_id is not None and self.unknown_id in ids:
                self.unknown += ids.count(self.unknown_id)
                self.unknown_characters |= set(text) - self.backend.get_vocab().keys()
            if self.limit is not None and self.tokens + len(ids) > self.limit:
                ids, text = self._cut(text, self.limit - self.tokens)
                last = False
            if last and (self.limit is None or self.tokens + len(ids) < self.limit):
                ids.append(self.eos)
                self.documents += 1
            self.tokens += len(ids)
            self.bytes += len(text.encode())
            parts.append(ids)
            if self.limit is not None and self.tokens >= self.limit:
                break
        return np.array([token for part in parts for token in part], dtype=np.int64)

    def _cut(self, text: str, tokens: int) -> tuple[list[int], str]:
        """The first tokens of a text, and the characters that they cover."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids[:tokens], text[: encoding.offsets[tokens - 1][1] if tokens else 0]

    def check_unknown(self) -> None:
        if self.unknown * 1000 > self.tokens:
            examples = ", ".join(repr(character) for character in sorted(self.unknown_characters)[:5])
            raise ConfigError(
                f"data.tokenizer: {self.unknown} of {self.tokens} tokens are unknown to it"
                f"{f' (such as {examples})' if examples else ''}; allowed: a tokenizer made from like text, or 'byte', "
                "which knows all"
            )


def _pieces(document: str) -> Iterator[tuple[str, bool]]:
    """Cuts a long document, so that cores share it and memory stays small; the flag marks the last piece.

    Cuts lie at a single line break between two other characters, where a byte-level tokenizer cuts in any case.
    """
    start = 0
    while len(document) - start > _PIECE:
        cut = start + _PIECE
        while cut > start and not (
            document[cut - 1] == "\n" and not document[cut].isspace() and not document[cut - 2].isspace()
        ):
            cut -= 1
        cut = cut if cut > start + 1 else start + _PIECE
        yield document[start:cut], False
        start = cut
    yield document[start:], True
