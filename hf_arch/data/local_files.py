"""Text of the user's own: txt (one document a file), jsonl, json and parquet (one document a row), read by `datasets`.

Files named `validation...`, `valid...`, `val...` or `dev...` are the held-out text where there are such files
(`test...` is left alone then). Otherwise the end of the text is held out: from the border between documents that
comes near the wished share, else from the exact character, so that a single file is cut as nanoGPT cuts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_arch.core.errors import ConfigError, nearest
from hf_arch.data.cache import hash_file, hash_text, user_path
from hf_arch.data.corpus import part_range
from hf_arch.data.options import DataOptions

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}

_BLOCK = 1000
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_HELD_OUT_NAME = re.compile(r"(validation|valid|val|dev)(?![a-z])", re.IGNORECASE)
_TEST_NAME = re.compile(r"test(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class LocalFiles:
    """Files on disk. Without `validation_files` the last `validation_fraction` of the text is held out."""

    name: str
    train_files: tuple[str, ...]
    validation_files: tuple[str, ...]
    text_column: str
    validation_fraction: float
    cache: Path
    progress: bool

    @property
    def attribution(self) -> str:
        return f"Local files: {Path(self.name).name}."

    @classmethod
    def open(cls, name: str, options: DataOptions, cache: Path, *, progress: bool) -> LocalFiles:
        """Finds the files; reads none of them, but for files of the same size on both sides of the split.

        Raises:
            ConfigError: nothing readable there, or the same file to train on and held out.
        """
        train = files = _find(name)
        held_out = tuple(file for file in files if _HELD_OUT_NAME.match(Path(file).name))
        if held_out and len(held_out) < len(files):
            train = tuple(file for file in files if file not in held_out and not _TEST_NAME.match(Path(file).name))
            _refuse_copies(train, held_out)
        else:
            held_out = ()
        return cls(name, train, held_out, options.text_column, options.validation_fraction, cache, progress)

    def fingerprint(self) -> str:
        train, held_out = (
            [_stamped_hash(file) for file in files] for files in (self.train_files, self.validation_files)
        )
        return hash_text(*train, *held_out, len(train), self.text_column, self.validation_fraction)

    def documents(self, split: str, part: int = 0, parts: int = 1) -> Iterator[str]:
        if split == "validation" and self.validation_files:
            rows = self._rows(self.validation_files)
        else:
            rows = self._rows(self.train_files)
        first, last = (0, 0), (len(rows), 0)
        if not self.validation_files:
            border = _border(_lengths(rows), self.validation_fraction)
            first, last = (first, border) if split == "train" else (border, last)
        numbers = range(first[0], last[0] + (last[1] > 0))
        for place, text in texts_of(rows, "text", numbers, part, parts):
            text = text[first[1] if place == first[0] else 0 : last[1] if place == last[0] else None]
            if text:
                yield text

    def _rows(self, files: tuple[str, ...]) -> Dataset:
        return _read(files, tuple(map(_stamp, files)), self.text_column, self.cache, self.progress)


def _find(name: str) -> tuple[str, ...]:
    path = user_path(name)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and _reader(file))
    else:
        found = sorted(Path(file) for file in glob(str(path), recursive=True) if Path(file).is_file())
    allowed = f"allowed: {', '.join(READERS)}"
    if not found:
        raise ConfigError(f"data.corpus: {name!r} contains no readable file; {allowed}")
    for file in found:
        if not _reader(file):
            near = nearest(file.suffix, READERS)
            hint = f"nearest: {near!r}; " if near else ""
            raise ConfigError(f"data.corpus: {str(file)!r} has the unknown extension {file.suffix!r}; {hint}{allowed}")
    return tuple(str(file) for file in found)


def _reader(file: Path) -> str | None:
    suffix = Path(file.stem).suffix if file.suffix in _COMPRESSED else file.suffix
    return READERS.get(suffix.lower())


def _refuse_copies(train: tuple[str, ...], held_out: tuple[str, ...]) -> None:
    """Raises ConfigError where a file that is held out holds the bytes of one to train on."""
    sizes = {Path(file).stat().st_size for file in train} & {Path(file).stat().st_size for file in held_out}
    alike = {_stamped_hash(file): file for file in train if Path(file).stat().st_size in sizes - {0}}
    for file in held_out if alike else ():
        if (same := alike.get(_stamped_hash(file))) is not None:
            raise ConfigError(
                f"data.corpus: {file!r} is held out and holds the same bytes as {same!r}, which is trained on; remove "
                "one of them, or give other text for validation"
            )


def _stamped_hash(file: str) -> str:
    """A hash of what is read of a file: of its bytes, and of how they are read where they may be read as text too."""
    content = _hash(file, _stamp(file))
    return hash_text("json", content) if _reader(Path(file)) == "json" else content


Stamp = tuple[int, int, int, int]


def _stamp(file: str) -> Stamp:
    """What differs once a file has changed. Its time of writing alone does not: archives and copies set it to what they
    like, and nothing but writing sets the time of change."""
    status = Path(file).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(maxsize=4096)
def _hash(file: str, stamp: Stamp) -> str:
    """The hash of a file's bytes, worked out once a process as long as its stamp stays."""
    return hash_file(Path(file))


@lru_cache(maxsize=8)
def _read(files: tuple[str, ...], stamps: tuple[Stamp, ...], column: str, cache: Path, progress: bool) -> Dataset:
    """All documents as one memory-mapped dataset with the one column `text`.

    `datasets` takes what it read earlier of files that have the same names and times of writing, so that each state of
    the files gets a cache of its own."""
    import datasets

    folder = cache / "datasets" / hash_text(*stamps)[:32]

    tables = []
    for reader in dict.fromkeys(READERS.values()):
        mine = [file for file in files if _reader(Path(file)) == reader and Path(file).stat().st_size]
        if not mine:
            continue
        more = {"sample_by": "document"} if reader == "text" else {}
        with quiet_bars(progress):
            try:
                table = datasets.load_dataset(reader, data_files=mine, split="train", cache_dir=str(folder), **more)
            except Exception as error:  # every reader has exceptions of its own for what it cannot parse
                reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
                raise ConfigError(f"data.corpus: {mine[0]!r} cannot be read as {reader} ({reason[:160]})") from error
        wanted = "text" if reader == "text" else column
        check_column(table, wanted, mine[0])
        tables.append(table.select_columns([wanted]).rename_columns({wanted: "text"}))
    if not tables:
        raise ConfigError(f"data.corpus: {files[0]!r} is empty; allowed: files with text")
    return tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)


def check_column(rows: Dataset | IterableDataset, wanted: str, where: str) -> None:
    """Raises ConfigError unless the rows, read from `where`, have a column `wanted` that holds text."""
    columns = rows.column_names or []
    if wanted not in columns:
        near = nearest(wanted, columns)
        hint = f"nearest: {near!r}; " if near else ""
        raise ConfigError(
            f"data.text_column: {where!r} has no column {wanted!r}; {hint}allowed: {', '.join(columns) or 'none'}"
        )
    kind = rows.features[wanted].dtype if rows.features is not None else "string"
    if kind not in ("string", "large_string"):
        raise ConfigError(f"data.text_column: column {wanted!r} of {where!r} holds {kind}; allowed: a column of text")


def texts_of(rows: Dataset, column: str, numbers: range, part: int, parts: int) -> Iterator[tuple[int, str]]:
    """Row numbers and texts of one of `parts` parts of `numbers`, read in blocks: row by row is ten times slower."""
    mine = part_range(len(numbers), part, parts)
    for start in range(mine.start, mine.stop, _BLOCK):
        block = numbers[start : min(start + _BLOCK, mine.stop)]
        for number, text in zip(block, rows[block.start : block.stop][column], strict=True):
            yield number, text or ""


def _lengths(rows: Dataset) -> np.ndarray:
    """Characters of each document, int64 [N]."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.utf8_length(rows.with_format("arrow")[:]["text"]), 0).to_numpy().astype(np.int64)


def _border(lengths: np.ndarray, fraction: float) -> tuple[int, int]:
    """Where the held-out text starts: a document and a character in it."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    if not total:
        return 0, 0
    cut = int(total * (1 - fraction))
    document = int(np.searchsorted(ends, cut, side="right"))
    start = int(ends[document] - lengths[document])
    starts = {start: document, int(ends[document]): document + 1}
    closest = min(starts, key=lambda place: abs(place - cut))
    if 0 < closest < total and fraction / 2 <= (total - closest) / total <= 2 * fraction:
        return starts[closest], 0
    return document, cut - start


class quiet_bars:
    """Hides the progress bars of `datasets` inside a block, unless they are wanted or hidden already."""

    def __init__(self, progress: bool) -> None:
        self.progress = progress

    def __enter__(self) -> None:
        import datasets

        self.hide = not self.progress and datasets.is_progress_bar_enabled()
        if self.hide:
            datasets.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        if self.hide:
            import datasets

            datasets.enable_progress_bars()
