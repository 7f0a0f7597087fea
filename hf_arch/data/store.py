"""Token shards on disk: raw little-endian uint16 or uint32, memory-mapped by readers, described by one `meta.json`.

    <folder>/meta.json  tokenizer/  train-00000-of-00004.bin ...  validation-00000-of-00001.bin

`meta.json` is written last: a folder that has it is whole. It holds the sha256 of every shard.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_atomic
from hf_arch.data.cache import hash_file

FORMAT = 1
META = "meta.json"


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


def token_dtype(vocab_size: int) -> str:
    """The narrowest type that holds every token, little-endian."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"
