"""Text to token shards, in this process or several.

A shard is written to a temporary file, hashed during writing, and renamed with its record next to it, so an interrupted
preparation goes on with the shards that it has. Workers load `tokenizers` and numpy, neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import atomic_file, write_atomic
from hf_arch.core.plugin_source import PluginSource
from hf_arch.core.plugins import load_source, loaded_plugins
from hf_arch.data.corpus import Corpus
from hf_arch.data.store import ShardRecord
from hf_arch.environment import set_variable

_PIECE = 1 << 16
_BATCH = 1 << 22
_UNKNOWN_ALLOWED = 1e-3


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: a part of a split of a corpus, into `<folder>/<name>.bin`.

    folder holds `tokenizer/tokenizer.json`. limit: tokens after which to stop, within a document if need be.
    """

    corpus: Corpus
    split: str
    part: int
    parts: int
    folder: Path
    dtype: str
    eos_token_id: int
    unk_token_id: int | None
    limit: int | None

    @property
    def name(self) -> str:
        return f"{self.split}-{self.part:05d}-of-{self.parts:05d}"

    @property
    def record_path(self) -> Path:
        """The record of a finished shard, next to it until the store is whole."""
        return self.folder / f"{self.name}.json"


def write_shard(task: ShardTask, advance: Callable[[int], None]) -> ShardRecord:
    """Tokenises the documents of a task, each ended by the end-of-text token, or takes over what an earlier try wrote.

    `advance` is told the number of tokens of each batch.

    Raises:
        ConfigError: more than one token in a thousand is unknown to the tokenizer.
    """
    path = task.folder / f"{task.name}.bin"
    dtype = np.dtype(task.dtype)
    if task.record_path.is_file():
        record = ShardRecord(**json.loads(task.record_path.read_text(encoding="utf-8")))
        if path.is_file() and path.stat().st_size == record.tokens * dtype.itemsize:
            advance(record.tokens)
            return record
    encoder = _Encoder(task)
    digest = hashlib.sha256()
    with atomic_file(path) as file:
        for tokens in encoder.encode(task.corpus.documents(task.split, task.part, task.parts)):
            content = tokens.astype(dtype).tobytes()
            digest.update(content)
            file.write(content)
            advance(tokens.size)
        encoder.check_unknown()
    record = ShardRecord(path.name, encoder.tokens, encoder.bytes, encoder.documents, digest.hexdigest())
    write_atomic(task.record_path, json.dumps(asdict(record)).encode())
    return record


def write_shards(tasks: Sequence[ShardTask], workers: int, advance: Callable[[int], None]) -> list[ShardRecord]:
    """Writes all shards, by `workers` processes if more than one, and returns their records in order."""
    if workers == 1:
        return [write_shard(task, advance) for task in tasks]
    # Spawned, not forked: the threads of the tokenizer and of torch do not survive a fork.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(counter, loaded_plugins())) as pool:
        futures = [pool.submit(_write_in_worker, task) for task in tasks]
        shown, pending = 0, set(futures)
        while pending:
            _, pending = wait(pending, timeout=0.2)
            advance(counter.value - shown)
            shown = counter.value
        return [future.result() for future in futures]


_worker_counter: Any = None


def _start_worker(counter: Any, plugins: Sequence[PluginSource]) -> None:
    global _worker_counter
    for plugin in plugins:  # a corpus of a plugin is unpickled from the module that the plugin makes
        load_source(plugin)
    _worker_counter = counter
    set_variable("TOKENIZERS_PARALLELISM", "false", replace=True)  # one core a worker


def _write_in_worker(task: ShardTask) -> ShardRecord:
    def advance(tokens: int) -> None:
        with _worker_counter.get_lock():
            _worker_counter.value += tokens

    return write_shard(task, advance)


class _Encoder:
    """Encodes documents in batches, and counts what it has given."""

    def __init__(self, task: ShardTask) -> None:
        self.backend = Tokenizer.from_file(str(task.folder / "tokenizer" / "tokenizer.json"))
        self.backend.no_truncation()
        self.backend.no_padding()
        # Text that spells a special token stays text: only real borders between documents are end-of-text tokens.
        self.backend.encode_special_tokens = True
        self.eos = task.eos_token_id
        # Where one token is both, as in GPT-2, nothing is ever unknown.
        self.unknown_id = None if task.unk_token_id == self.eos else task.unk_token_id
        self.limit = task.limit
        self.tokens = self.bytes = self.documents = self.unknown = 0
        self.unknown_examples: set[str] = set()

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
                self._note_unknown(text)
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

    def _note_unknown(self, text: str) -> None:
        if len(self.unknown_examples) < 5:
            encoding = self.backend.encode(text, add_special_tokens=False)
            self.unknown_examples |= {
                text[slice(*offsets)]
                for token, offsets in zip(encoding.ids, encoding.offsets, strict=True)
                if token == self.unknown_id
            }

    def check_unknown(self) -> None:
        if self.unknown > _UNKNOWN_ALLOWED * self.tokens:
            examples = ", ".join(map(repr, sorted(self.unknown_examples)[:5]))
            raise ConfigError(
                f"data.tokenizer: {self.unknown} of {self.tokens} tokens are unknown to it"
                f" (such as {examples}); allowed: "
                "a tokenizer trained on similar text, or 'byte', which knows every byte"
            )


def _pieces(document: str) -> Iterator[tuple[str, bool]]:
    """Cuts a long document, so that cores share it and memory stays small; the flag marks the last piece.

    Cuts lie at a single line break between two other characters, where a byte-level tokenizer cuts in any case; another
    kind may see one word border more there.
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
