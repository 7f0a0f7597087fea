"""What `hf-arch data prepare` would take, from a sample of the text: nothing is downloaded or written.

The sample is read from the files as they lie there, a tokenizer that is to be trained is trained on it, and it is
tokenised and timed. Where the text is not on this machine, only what the cache and the options say is known.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hf_arch.core.errors import ConfigError, choice_error, nearest
from hf_arch.data.cache import data_cache, hash_text, user_path
from hf_arch.data.corpus import Corpus
from hf_arch.data.find import corpus_here
from hf_arch.data.hub import HubCorpus
from hf_arch.data.local_files import READERS, LocalFiles
from hf_arch.data.options import DataOptions
from hf_arch.data.prepare import TOKENIZER_CHARACTERS, shards_folder
from hf_arch.data.shakespeare import Shakespeare
from hf_arch.data.store import token_dtype
from hf_arch.data.tokenizer import TRAINED, build_tokenizer, read_tokenizer, tokenizer_key, vocabulary_size

SAMPLE_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class DataForecast:
    """What preparing a corpus takes. `folder`: where the shards go, None where only the text tells. ready: they are
    there. Numbers are None where the text is not on this machine. `sampled_bytes`: of text, that they come from.
    seconds: tokenizing by all workers, and training the tokenizer. memory_bytes: of all workers.
    """

    folder: str | None
    ready: bool
    text_bytes: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    sampled_bytes: int = 0
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, with the keys that every dry run has."""
        return {
            "dry_run": True,
            "device": "cpu",
            "hours": None if self.seconds is None else self.seconds / 3600,
            "basis": self.basis,
            **asdict(self),
        }

    @property
    def basis(self) -> str:
        """Where the numbers come from, in words."""
        if self.ready:
            return "the shards that are there"
        if not self.sampled_bytes:
            return "not known: the text or its tokenizer is not on this machine"
        return f"measured now on a sample of {self.sampled_bytes:,} bytes"


def forecast_data(
    options: DataOptions,
    out: str | os.PathLike[str] | None = None,
    *,
    shards: int | None = None,
    workers: int = 1,
) -> DataForecast:
    """What `hf_arch.data.prepare_shards` would take with these arguments; raises `ConfigError` as it does."""
    cache = data_cache()
    corpus = corpus_here(options.corpus, options, cache)
    key = None
    if corpus is not None:
        try:
            key = tokenizer_key(options.tokenizer, options.vocab_size, hash_text(corpus.fingerprint()), offline=True)
        except ConfigError:
            if user_path(options.tokenizer).exists():
                raise
    if corpus is None or key is None:
        what = "corpus" if corpus is None else "tokenizer"
        near = nearest(options.tokenizer, TRAINED) if what == "tokenizer" else None
        hint = "" if near is None else f" (nearest of those that need no download: {near!r})"
        return DataForecast(
            None,
            False,
            warnings=(f"{what} {getattr(options, what)!r} is not on this machine{hint}: sizes are not known",),
        )
    folder, meta = shards_folder(options, out, corpus, key, cache, shards)
    if meta is not None:
        tokens = sum(meta.total(split, "tokens") for split in meta.splits)
        return DataForecast(str(folder), True, tokens=tokens, seconds=0.0, memory_bytes=0, disk_bytes=0)
    sample, text_bytes = _sample(corpus)
    if not sample:
        size = "5 MB that are downloaded first" if isinstance(corpus, Shakespeare) else "not known before it is read"
        return DataForecast(str(folder), False, warnings=(f"text of {corpus.name!r}: {size}",))
    return _measure(options, str(folder), cache / "tokenizers" / key, sample, text_bytes, workers)


def _measure(
    options: DataOptions, folder: str, made: Path, sample: str, text_bytes: float | None, workers: int
) -> DataForecast:
    """What tokenising takes, by the time that a sample takes now.

    Args:
        folder: of the shards. made: where the tokenizer is, if it was trained before.
        text_bytes: of the whole text; None where the sample is all.
        workers: that share the tokenising.
    """
    sampled = len(sample.encode())
    text_bytes = sampled if text_bytes is None else text_bytes
    started = time.perf_counter()
    tokenizer = (
        read_tokenizer(made)
        if made.is_dir()
        else build_tokenizer(options.tokenizer, options.vocab_size, lambda: iter([sample]))
    )
    training = 0.0 if made.is_dir() else time.perf_counter() - started
    started = time.perf_counter()
    tokens_of_sample = len(tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"])
    encoding = time.perf_counter() - started
    whole = text_bytes / sampled
    if options.max_train_tokens is not None:
        whole = min(whole, (options.max_train_tokens + (options.max_validation_tokens or 0)) / tokens_of_sample)
    learned = min(whole, max(1.0, TOKENIZER_CHARACTERS / len(sample)))
    tokens = round(tokens_of_sample * whole)
    return DataForecast(
        folder=folder,
        ready=False,
        text_bytes=round(text_bytes),
        tokens=tokens,
        seconds=training * learned + encoding * whole / workers,
        memory_bytes=workers * int(psutil.Process().memory_info().rss),
        disk_bytes=tokens * int(token_dtype(vocabulary_size(tokenizer))[-1]),
        sampled_bytes=sampled,
    )


def _sample(corpus: Corpus) -> tuple[str, float | None]:
    """Text from the head of a corpus, and the bytes of its whole text (None: the sample is all); an empty text where it
    is not on this machine."""
    if isinstance(corpus, HubCorpus) or (isinstance(corpus, Shakespeare) and not corpus.complete):
        return "", None
    if isinstance(corpus, LocalFiles):
        return _sample_files(corpus)
    texts = [text for split in ("train", "validation") for text in corpus.documents(split)]
    sample = "".join(_head(iter(texts)))
    return sample, sum(len(text.encode()) for text in texts)


def _head(texts: Iterator[str]) -> Iterator[str]:
    left = SAMPLE_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)


def _sample_files(corpus: LocalFiles) -> tuple[str, float | None]:
    """A sample of the first file, and the bytes of text in all as if they held as much in each byte as that sample."""
    files = [Path(file) for file in (*corpus.train_files, *corpus.validation_files)]
    total = sum(file.stat().st_size for file in files)
    first = files[0]
    if first.suffix not in READERS:
        return "", None  # compressed
    try:
        texts, read = {".txt": _plain_texts, ".parquet": _parquet_texts}.get(first.suffix, _json_texts)(corpus, first)
    except (ValueError, OSError, AttributeError) as error:
        raise ConfigError(f"data.corpus: {str(first)!r} cannot be read ({str(error)[:160]})") from error
    sample = "".join(texts)
    return sample, len(sample.encode()) * total / max(1, read)


def _plain_texts(corpus: LocalFiles, file: Path) -> tuple[list[str], float]:
    """The head of a text file, and the bytes that it was read from."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        text = lines.read(SAMPLE_CHARACTERS)
    return [text], len(text.encode())


def _parquet_texts(corpus: LocalFiles, file: Path) -> tuple[list[str], float]:
    """Texts from the head of a parquet file, and its bytes in proportion to the rows that they are."""
    import pyarrow.parquet as parquet

    table = parquet.ParquetFile(file)
    _check_column(corpus, table.schema_arrow.names)
    rows, texts = 0, list[str]()
    for batch in table.iter_batches(batch_size=256, columns=[corpus.text_column]):
        texts += [text for text in batch.column(0).to_pylist() if text]
        rows += batch.num_rows
        if sum(map(len, texts)) >= SAMPLE_CHARACTERS:
            break
    return texts, file.stat().st_size * rows / max(1, table.metadata.num_rows)


def _json_texts(corpus: LocalFiles, file: Path) -> tuple[list[str], float]:
    """Texts from the head of a jsonl file, or of a json file whole, and the bytes that they were read from."""
    content = file.read_bytes() if file.suffix == ".json" else b""
    if content.lstrip()[:1] == b"[":
        rows = json.loads(content)
        return [_text(corpus, row) for row in rows], len(content)
    texts, read = [], 0
    with file.open("rb") as lines:
        for line in lines:
            read += len(line)
            if line.strip():
                texts.append(_text(corpus, json.loads(line)))
            if read >= SAMPLE_CHARACTERS:
                break
    return texts, read


def _text(corpus: LocalFiles, row: dict[str, Any]) -> str:
    _check_column(corpus, list(row))
    return str(row[corpus.text_column] or "")


def _check_column(corpus: LocalFiles, names: list[str]) -> None:
    if corpus.text_column not in names:
        raise choice_error("data.text_column", corpus.text_column, names)
