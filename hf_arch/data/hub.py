"""Corpora of the Hub, by name. The same code reads a local folder of the same layout (`HubCorpus.path`).

A corpus is streamed where it is too large to download whole, or where only its first tokens are asked for.
Where a corpus has no validation split, its first documents are held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_arch.core.errors import ConfigError
from hf_arch.core.registry import CORPORA
from hf_arch.data.cache import hash_text
from hf_arch.data.local_files import check_column, quiet_bars, texts_of
from hf_arch.data.options import DataOptions

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


@dataclass(frozen=True)
class HubSource:
    """Where a corpus lies on the Hub.

    summary: what it holds, in a few words.
    config: the name of one of its configurations.
    revision: branch or commit.
    validation: the split that is held out, or None: the first `held_out_documents` of train.
    streaming: never downloaded whole.
    """

    path: str
    attribution: str
    summary: str = "from the Hub"
    config: str | None = None
    revision: str | None = None
    text_column: str = "text"
    validation: str | None = "validation"
    held_out_documents: int = 5_000
    streaming: bool = False


HUB_CORPORA: dict[str, HubSource] = {}


def register_hub_corpus(name: str, source: HubSource) -> None:
    """Adds a corpus of the Hub to `CORPORA`, from a plugin file too. Raises `ConfigError` if the name is taken."""

    def open_hub_corpus(options: DataOptions, cache: Path, *, progress: bool = True) -> HubCorpus:
        return HubCorpus.open(name, options, cache, progress=progress)

    open_hub_corpus.__doc__ = source.summary
    open_hub_corpus.__qualname__ = f"register_hub_corpus({name!r}, {source})"
    CORPORA.register(name)(open_hub_corpus)
    HUB_CORPORA[name] = source


_OURS = {
    "tiny-shakespeare": HubSource(
        "karpathy/tiny_shakespeare",
        "tiny Shakespeare (A. Karpathy), text in the public domain.",
        summary="1 MB, from the Hub",
        # Its main branch is a loading script, which `datasets` no longer runs; this branch holds the same text.
        revision="refs/convert/parquet",
    ),
    "tinystories": HubSource(
        "roneneldan/TinyStories",
        "TinyStories (Eldan and Li 2023), CDLA-Sharing 1.0.",
        summary="synthetic short stories, 2 GB, from the Hub",
    ),
    "fineweb-edu-10b": HubSource(
        "HuggingFaceFW/fineweb-edu",
        "FineWeb-Edu, sample of 10 billion tokens (Penedo et al. 2024), ODC-By 1.0.",
        summary="educational web pages, 10 billion tokens, from the Hub",
        config="sample-10BT",
        validation=None,
    ),
    "c4": HubSource(
        "allenai/c4",
        "C4, English (Raffel et al. 2020), ODC-By 1.0.",
        summary="cleaned web pages in English, streamed from the Hub",
        config="en",
        streaming=True,
    ),
}
for _name, _source in _OURS.items():
    register_hub_corpus(_name, _source)


@dataclass(frozen=True)
class HubCorpus:
    """A corpus loaded by `datasets.load_dataset`; `path` is the Hub id, or a folder of the same layout."""

    name: str
    source: HubSource
    path: str
    streaming: bool
    cache: Path
    progress: bool

    @property
    def attribution(self) -> str:
        return self.source.attribution

    @classmethod
    def open(
        cls, name: str, options: DataOptions, cache: Path, *, path: str | None = None, progress: bool = True
    ) -> HubCorpus:
        """The corpus of that name in `HUB_CORPORA`.

        Raises:
            ConfigError: a streamed corpus without a limit of tokens.
        """
        source = HUB_CORPORA[name]
        if source.streaming and options.max_train_tokens is None:
            raise ConfigError(
                f"data.max_train_tokens: {name!r} is streamed and too large to read whole; allowed: a number of "
                "tokens, such as 1_000_000_000"
            )
        streaming = source.streaming or options.max_train_tokens is not None
        return cls(name, source, path or source.path, streaming, cache, progress)

    def fingerprint(self) -> str:
        source = self.source
        # In the hash where it is not the usual number alone: the fingerprints of earlier releases stay.
        usual = source.validation is not None or source.held_out_documents == HubSource.held_out_documents
        held_out = () if usual else (source.held_out_documents,)
        facts = (source.config, source.revision, source.text_column, source.validation, self.streaming, *held_out)
        return hash_text(self.path, *facts)

    def documents(self, split: str, part: int = 0, parts: int = 1) -> Iterator[str]:
        rows, first, last = self._rows(split)
        column = self.source.text_column
        if self.streaming:
            yield from _streamed(rows, column, first, last, part, parts)
            return
        check_column(rows, column, self.path)
        numbers = range(min(first, len(rows)), len(rows) if last is None else min(last, len(rows)))
        for _, text in texts_of(rows, column, numbers, part, parts):
            if text:
                yield text

    def _rows(self, split: str) -> tuple[Dataset | IterableDataset, int, int | None]:
        """The rows that hold a split, and the first and last document of it among them."""
        import datasets

        source = self.source
        first, last = 0, None
        if split == "validation" and source.validation is None:
            last = source.held_out_documents
        elif split == "train" and source.validation is None:
            first = source.held_out_documents
        wanted = "train" if split == "train" or source.validation is None else source.validation
        try:
            with quiet_bars(self.progress):
                rows = datasets.load_dataset(
                    self.path,
                    source.config,
                    revision=source.revision,
                    split=wanted,
                    streaming=self.streaming,
                    cache_dir=str(self.cache / "datasets"),
                )
        except Exception as error:  # the Hub client has dozens of kinds: offline, missing, gated, broken, full disk
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(
                f"data.corpus: {self.name!r} could not be loaded from {self.path!r} ({reason[:160]}); allowed "
                "without the Hub: shakespeare, python-docs, or the path of a file or folder"
            ) from error
        return rows, first, last


def _streamed(rows: IterableDataset, column: str, first: int, last: int | None, part: int, parts: int) -> Iterator[str]:
    """Documents first..last of a stream; a part of several is a run of its files, found without reading the others."""
    if parts > rows.num_shards:
        raise ConfigError(f"shards: {parts} are more than the files of the stream; allowed: 1 to {rows.num_shards}")
    if rows.column_names is not None:
        check_column(rows, column, "stream")
    if parts > 1:
        rows = rows.shard(num_shards=parts, index=part, contiguous=True)
    skipped = 0
    for number, row in enumerate(rows):
        if last is not None and number >= last:
            return
        if part == 0 and number < first:  # held out: the start of the first part
            skipped += 1
        elif row[column]:
            yield row[column]
    if part == 0 and skipped < first and parts > 1:
        raise ConfigError(
            f"shards: {parts} parts of the stream hold {skipped} documents in the first, and {first} are held out: "
            "the others would be trained on; nearest: 1"
        )
