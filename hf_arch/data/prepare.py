"""Prepares data once and opens it ever after: text -> tokenizer -> token shards in the cache -> packed rows.

Everything lies under a key: the hash of the text and its split, the tokenizer and the limits. A second call finds the
key and reads no text; an interrupted one goes on with the shards that are there; several processes wait for one.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import temporary_name
from hf_arch.core.plugin_files import unwatched
from hf_arch.data.cache import data_cache, hash_text, locked, publish_folder, user_path
from hf_arch.data.corpora import open_corpus
from hf_arch.data.corpus import SPLITS, Corpus, part_range
from hf_arch.data.dataset import MixedDataset, TokenDataset, TokenStream
from hf_arch.data.options import DataOptions
from hf_arch.data.order import MixtureOrder, SeededOrder
from hf_arch.data.sharding import ShardTask, write_shards
from hf_arch.data.store import FORMAT, StoreMeta, check_shards, read_meta, token_dtype
from hf_arch.data.tokenizer import build_tokenizer, read_tokenizer, save_tokenizer, tokenizer_key, vocabulary_size

logger = logging.getLogger(__name__)

TOKENIZER_CHARACTERS = 100_000_000
"""A tokenizer is made from at most so many characters of the train split: more change it no further."""

_CHECKSUM_BELOW = 2 << 30


@dataclass(frozen=True)
class PreparedData:
    """What a run trains and is judged on.

    fingerprint: hex hash of all that decides the rows; equal fingerprints mean equal rows in the same places.
    weights: of the corpora in a mixture, else None.
    """

    tokenizer: PreTrainedTokenizerFast
    train: TokenDataset | MixedDataset
    validation: TokenDataset | MixedDataset
    fingerprint: str
    attribution: str
    corpus: str
    weights: tuple[float, ...] | None = None

    def order(self, seed: int) -> SeededOrder:
        """The order of the train rows for this seed, in the mixture's proportions where there is one."""
        if self.weights is None:
            return SeededOrder(len(self.train), seed)
        assert isinstance(self.train, MixedDataset)
        return MixtureOrder([len(dataset) for dataset in self.train.datasets], self.weights, seed)


@dataclass(frozen=True)
class PreparedShards:
    """A folder of token shards; `created` is False where it was there already."""

    folder: Path
    meta: StoreMeta
    created: bool


@unwatched()
def prepare_data(
    options: DataOptions, *, cache_dir: str | os.PathLike[str] | None = None, progress: bool = True
) -> PreparedData:
    """Tokenizer, train rows and validation rows of a recipe's `data` section, from the cache where they are there.

    Args:
        options: the `data` section.
        cache_dir: instead of `HF_ARCH_CACHE` or `~/.cache/hf_arch`.
        progress: bars on stderr while there is work to do.

    Raises:
        ConfigError: a wrong option, text that cannot be loaded, or too little of it for one row.
    """
    cache = data_cache(cache_dir)
    prepared = user_path(options.corpus)
    ready = read_meta(prepared) if options.mixture is None else None
    if ready is not None:
        stores = [reopen_store(prepared, ready, options)]
    else:
        names = list(options.mixture) if options.mixture is not None else [options.corpus]
        corpora = [open_corpus(name, options, cache, progress=progress) for name in names]
        tokenizer = _tokenizer_folder(options, corpora, cache)
        stores = [_cached_store(options, corpus, tokenizer, cache, progress=progress) for corpus in corpora]
    return open_stores(options, stores)


def prepare_shards(
    options: DataOptions,
    out: str | os.PathLike[str] | None = None,
    *,
    shards: int | None = None,
    workers: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> PreparedShards:
    """Tokenises one corpus into memory-mapped shards; where they are there already, checks them and does nothing.

    Args:
        options: the `data` section; `mixture` is not for this.
        out: the folder to make; by default the place in the cache where `prepare_data` looks.
        shards: files of the train split; by default one for each worker.
        workers: processes. More than one are spawned, so a script that asks for them needs a `__main__` guard.

    Raises:
        ConfigError: as `prepare_data`; also a damaged shard, or an `out` that holds something else.
    """
    for field, value in (("shards", shards), ("workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{field}: {value} is too small; allowed: at least 1; nearest: 1")
    if options.mixture is not None:
        raise ConfigError("data.mixture: shards are prepared one corpus at a time; give a corpus")
    cache = data_cache(cache_dir)
    corpus = open_corpus(options.corpus, options, cache, progress=progress)
    tokenizer = _tokenizer_folder(options, [corpus], cache)
    folder, meta = shards_folder(options, out, corpus, tokenizer.name, cache, shards)
    if meta is not None:
        check_shards(folder, meta, checksums=True)
        return PreparedShards(folder, meta, created=False)
    key = store_key(options, corpus, tokenizer.name)
    job = _Job(options, corpus, tokenizer, key, folder, shards or workers, workers)
    return PreparedShards(folder, job.run(cache, progress=progress), created=True)


def shards_folder(
    options: DataOptions,
    out: str | os.PathLike[str] | None,
    corpus: Corpus,
    tokenizer: str,
    cache: Path,
    shards: int | None,
) -> tuple[Path, StoreMeta | None]:
    """Where `prepare_shards` puts its shards, and what is known of them where they are there already.

    Raises `ConfigError` where the folder holds something else.
    """
    key = store_key(options, corpus, tokenizer)
    folder = user_path(out).resolve() if out is not None else cache / "tokens" / key
    meta = read_meta(folder)
    if meta is not None:
        if meta.key != key:
            raise ConfigError(
                f"out: {str(folder)!r} holds other data ({meta.corpus!r}); name another folder or delete it"
            )
        if shards not in (None, len(meta.splits["train"])):
            raise ConfigError(
                f"shards: {str(folder)!r} holds {len(meta.splits['train'])} already, not {shards}; name another folder "
                "or delete it"
            )
    elif folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"out: {str(folder)!r} is not empty and contains no shards; name another folder")
    return folder, meta


def _tokenizer_folder(options: DataOptions, corpora: Sequence[Corpus], cache: Path) -> Path:
    """The folder of the tokenizer, named by its key; made from the train split of all corpora where it is not there."""
    text = hash_text(*(corpus.fingerprint() for corpus in corpora))
    key = tokenizer_key(options.tokenizer, options.vocab_size, text)
    folder = cache / "tokenizers" / key
    if folder.is_dir():
        return folder
    with locked(cache, f"tokenizer-{key}"):
        if not folder.is_dir():

            def texts() -> Iterator[str]:
                return _head(chain.from_iterable(corpus.documents("train") for corpus in corpora), TOKENIZER_CHARACTERS)

            tokenizer = build_tokenizer(options.tokenizer, options.vocab_size, texts)
            temporary = temporary_name(folder)
            save_tokenizer(tokenizer, temporary)
            publish_folder(temporary, folder)
    return folder


def _head(texts: Iterator[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)


def store_key(options: DataOptions, corpus: Corpus, tokenizer: str) -> str:
    """The name of a store in the cache: a hash over the text and its split, the tokenizer's key and the limits."""
    limits = (options.max_train_tokens, options.max_validation_tokens)
    return hash_text(FORMAT, corpus.fingerprint(), tokenizer, *limits)[:32]


def _cached_store(
    options: DataOptions, corpus: Corpus, tokenizer: Path, cache: Path, *, progress: bool
) -> tuple[Path, StoreMeta]:
    """The store of a corpus in the cache; made where it is missing, made again where it is damaged."""
    key = store_key(options, corpus, tokenizer.name)
    folder = cache / "tokens" / key
    job = _Job(options, corpus, tokenizer, key, folder, 1, 1)
    try:
        meta = _checked(folder)
    except ConfigError:
        with locked(cache, f"repair-{key}"):
            try:
                meta = _checked(folder)  # another process may have made it good while we waited
            except ConfigError as error:
                logger.warning("%s; doing it now", error)
                shutil.rmtree(folder)
                meta = job.run(cache, progress=progress)
    return folder, meta or job.run(cache, progress=progress)


def _checked(folder: Path) -> StoreMeta | None:
    meta = read_meta(folder)
    if meta is not None:
        _check(folder, meta)
    return meta


def _check(folder: Path, meta: StoreMeta) -> None:
    # A start should not read tens of gigabytes twice; `hf-arch data prepare` checks every byte of any store.
    width = int(meta.dtype[-1])
    check_shards(folder, meta, checksums=sum(meta.total(split, "tokens") for split in SPLITS) * width < _CHECKSUM_BELOW)


def reopen_store(folder: Path, meta: StoreMeta, options: DataOptions) -> tuple[Path, StoreMeta]:
    """A store named by its folder; options that it cannot follow any more are refused."""
    for field in ("max_train_tokens", "max_validation_tokens"):
        if getattr(options, field) is not None:
            raise ConfigError(f"data.{field}: {str(folder)!r} is tokenised already; set it when preparing the folder")
    if options.tokenizer not in (DataOptions.tokenizer, meta.tokenizer):
        raise ConfigError(
            f"data.tokenizer: {str(folder)!r} was tokenised with {meta.tokenizer!r}, not {options.tokenizer!r}; "
            f"nearest: {meta.tokenizer!r}"
        )
    _check(folder, meta)
    return folder, meta


def open_stores(options: DataOptions, stores: Sequence[tuple[Path, StoreMeta]]) -> PreparedData:
    """The rows of whole stores, one for each corpus. Raises `ConfigError` where one is too short for a row."""
    datasets = {split: [_dataset(options, folder, meta, split) for folder, meta in stores] for split in SPLITS}
    tokenizer = read_tokenizer(stores[0][0] / "tokenizer")
    tokenizer.model_max_length = options.sequence_length
    weights = tuple(map(float, options.mixture.values())) if options.mixture is not None else None
    parts = [(meta.key, len(meta.splits["train"])) for _, meta in stores]
    return PreparedData(
        tokenizer=tokenizer,
        train=datasets["train"][0] if weights is None else MixedDataset(datasets["train"]),
        validation=datasets["validation"][0] if weights is None else MixedDataset(datasets["validation"]),
        fingerprint=rows_fingerprint(options, parts),
        attribution=" ".join(meta.attribution for _, meta in stores),
        corpus=" + ".join(meta.corpus for _, meta in stores),
        weights=weights,
    )


def rows_fingerprint(options: DataOptions, stores: Sequence[tuple[str, int]]) -> str:
    """`PreparedData.fingerprint` from the key of each store and the number of its train shards."""
    weights = tuple(map(float, options.mixture.values())) if options.mixture is not None else None
    # Where a limit cut the text, each shard was cut: only then does their number decide which tokens there are.
    parts = [(key, shards if options.max_train_tokens else 0) for key, shards in stores]
    # Since fewer than all validation rows are of every corpus, a mixture's evaluations are others than before.
    measured = () if weights is None else ("first rows of each",)
    return hash_text(parts, weights, options.sequence_length, options.isolate_documents, *measured)


def _dataset(options: DataOptions, folder: Path, meta: StoreMeta, split: str) -> TokenDataset:
    tokens = meta.total(split, "tokens")
    if tokens < options.sequence_length:
        raise ConfigError(
            f"data.corpus: the {split} split of {meta.corpus!r} has {tokens} tokens and one row needs "
            f"{options.sequence_length} (data.sequence_length); give more text or shorter rows"
            + (", or another validation_fraction" if split == "validation" else "")
        )
    return TokenDataset(
        TokenStream([(folder / record.file, record.tokens) for record in meta.splits[split]], meta.dtype),
        sequence_length=options.sequence_length,
        num_bytes=meta.total(split, "bytes"),
        eos_token_id=meta.eos_token_id,
        isolate_documents=options.isolate_documents,
    )


@dataclass(frozen=True)
class _Job:
    """The making of one store, in a folder next to its place that is renamed once it is whole."""

    options: DataOptions
    corpus: Corpus
    tokenizer: Path
    key: str
    folder: Path
    shards: int
    workers: int

    def run(self, cache: Path, *, progress: bool) -> StoreMeta:
        with locked(cache, f"tokens-{hash_text(self.folder)[:32]}"):
            ready = read_meta(self.folder)  # another process may have been at it while we waited
            if ready is not None and ready.key == self.key:
                return ready
            partial = self.folder.with_name(f".{self.folder.name}.{self.key[:16]}.{self.shards}")
            partial.mkdir(parents=True, exist_ok=True)
            if not (partial / "tokenizer").is_dir():
                copied = temporary_name(partial / "tokenizer")
                shutil.copytree(self.tokenizer, copied)
                publish_folder(copied, partial / "tokenizer")
            tokenizer = read_tokenizer(partial / "tokenizer")
            tasks = self._tasks(partial, tokenizer)
            with _token_bar(Path(self.corpus.name).name, progress) as advance:
                records = write_shards(tasks, self.workers, advance)
            meta = StoreMeta(
                key=self.key,
                corpus=self.corpus.name,
                attribution=self.corpus.attribution,
                tokenizer=self.options.tokenizer,
                dtype=tasks[0].dtype,
                eos_token_id=tasks[0].eos_token_id,
                splits={"train": records[1:], "validation": records[:1]},
            )
            if not meta.total("train", "tokens"):
                raise ConfigError(f"data.corpus: {self.corpus.name!r} contains no text; allowed: a corpus with text")
            meta.write(partial)
            for left_over in (*(task.record_path for task in tasks), *partial.glob(".*")):
                left_over.unlink()
            publish_folder(partial, self.folder)
            return meta

    def _tasks(self, partial: Path, tokenizer: PreTrainedTokenizerFast) -> list[ShardTask]:
        """The validation shard, which tells soonest that the tokenizer does not fit, then those of train."""
        limit = self.options.max_train_tokens

        def task(split: str, part: int, parts: int, limit: int | None) -> ShardTask:
            return ShardTask(
                corpus=self.corpus,
                split=split,
                part=part,
                parts=parts,
                folder=partial,
                dtype=token_dtype(vocabulary_size(tokenizer)),
                eos_token_id=tokenizer.eos_token_id,
                unk_token_id=tokenizer.unk_token_id,
                limit=limit,
            )

        parts = self.shards
        shares = [None if limit is None else len(part_range(limit, part, parts)) for part in range(parts)]
        return [
            task("validation", 0, 1, self.options.max_validation_tokens),
            *(task("train", part, parts, share) for part, share in enumerate(shares)),
        ]


@contextmanager
def _token_bar(name: str, progress: bool) -> Iterator[Callable[[int], None]]:
    """A running count of tokens on stderr; gives the function that moves it."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("tokenising {task.description}"),
        TextColumn("{task.completed:,.0f} tokens"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(name, total=None, speed="")

        def advance(tokens: int) -> None:
            bar.advance(task, tokens)
            seconds = bar.tasks[0].elapsed or 0
            if seconds:
                bar.update(task, speed=f"{bar.tasks[0].completed / seconds:,.0f}/s")

        yield advance
