"""Token shards as a dataset of packed rows.

The shards of a split are read as one long stream of tokens, documents ended by the end-of-text token; row i is
tokens [i*T, (i+1)*T). Rows do not depend on how many shards hold the stream. `labels` are the row itself, which a model
of transformers shifts by itself and so leaves the last position without a target. `shift_labels` are the token after
each one, the first of the next row included: models and transformers' Trainer take them instead, and every position
that a model is evaluated and generates at has been trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset

from hf_arch.core.plugin_files import read_again


class TokenStream:
    """Memory-mapped shards end to end. Pickles as file names, so that DataLoader workers map the files themselves."""

    def __init__(self, shards: Sequence[tuple[Path, int]], dtype: str) -> None:
        self.shards = [(Path(path), tokens) for path, tokens in shards if tokens]
        self.dtype = np.dtype(dtype)
        self._ends = np.cumsum([tokens for _, tokens in self.shards], dtype=np.int64)
        self._maps: list[np.ndarray | None] = [None] * len(self.shards)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def files(self) -> list[tuple[str, int, int, str, int]]:
        """(path, bytes, time of the last change, kind of number, tokens) of each shard: equal while none is written
        again."""
        found = [(path.resolve(), path.stat(), tokens) for path, tokens in self.shards]
        return [(str(path), stat.st_size, stat.st_mtime_ns, str(self.dtype), tokens) for path, stat, tokens in found]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": [None] * len(self.shards)}

    def _map(self, number: int) -> np.ndarray:
        mapped = self._maps[number]
        if mapped is None:
            path, tokens = self.shards[number]
            mapped = self._maps[number] = np.memmap(path, dtype=self.dtype, mode="r", shape=(tokens,))
        return mapped

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as int64."""
        row = np.empty(stop - start, dtype=np.int64)
        done = 0
        number = int(np.searchsorted(self._ends, start, side="right"))
        while done < row.size:
            base = int(self._ends[number]) - self.shards[number][1]
            read_again(self.shards[number][0])
            part = self._map(number)[start + done - base : stop - base]
            row[done : done + part.size] = part
            done += part.size
            number += 1
        return row


class TokenDataset(Dataset[dict[str, torch.Tensor]]):
    """Rows of `sequence_length` tokens; what is left over at the end of the stream is dropped.

    Attributes:
        sequence_length: tokens a row, T.
        num_tokens: tokens of the split, end-of-text tokens included.
        num_bytes: UTF-8 bytes of the text of the split. Bits per byte of a mean loss in nats a token:
            loss / ln 2 * num_tokens / num_bytes (`bits_per_byte`).
        isolate_documents: rows carry `position_ids` that restart at each document, and its first token is no target.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        sequence_length: int,
        num_bytes: int,
        eos_token_id: int,
        isolate_documents: bool = False,
    ) -> None:
        self.stream = stream
        self.sequence_length = sequence_length
        self.num_tokens = len(stream)
        self.num_bytes = num_bytes
        self.eos_token_id = eos_token_id
        self.isolate_documents = isolate_documents

    def __len__(self) -> int:
        return self.num_tokens // self.sequence_length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels`, `shift_labels`, with isolated documents `position_ids` as well; all int64 [T].

        `shift_labels[t]` is the token after `input_ids[t]`; -100 at the very last token of the stream.
        """
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, stop = index * self.sequence_length, (index + 1) * self.sequence_length
        read = torch.from_numpy(self.stream.read(start, min(stop + 1, self.num_tokens)))
        input_ids = read[: self.sequence_length].clone()
        following = torch.full_like(input_ids, -100)
        following[: len(read) - 1] = read[1:]
        row = {"input_ids": input_ids, "labels": input_ids.clone(), "shift_labels": following}
        if self.isolate_documents:
            positions = torch.from_numpy(document_positions(input_ids.numpy(), self.eos_token_id))
            row["labels"][positions == 0] = -100
            following[input_ids == self.eos_token_id] = -100
            row["position_ids"] = positions
        return row

    @property
    def parts(self) -> list[range]:
        """The rows of each corpus: all of them, of the one."""
        return [range(len(self))]

    def spans(self) -> list[tuple[int, int]]:
        """What the model is to see by itself, as [start, stop) of the stream: each document where they are isolated,
        else all of it."""
        if not self.isolate_documents:
            return [(0, self.num_tokens)]
        return document_spans(self.stream.read(0, self.num_tokens), self.eos_token_id)

    def bits_per_byte(self, loss: float) -> float:
        """Bits per byte of text, of a mean loss in nats per token."""
        return loss / math.log(2) * self.num_tokens / self.num_bytes


class MixedDataset(ConcatDataset[dict[str, torch.Tensor]]):
    """Several token datasets end to end, with the sums that a run reports; drawn from by a `MixtureOrder`."""

    datasets: list[TokenDataset]  # type: ignore[assignment]

    def __init__(self, datasets: Sequence[TokenDataset]) -> None:
        super().__init__(datasets)
        self.sequence_length = datasets[0].sequence_length
        self.num_tokens = sum(dataset.num_tokens for dataset in datasets)
        self.num_bytes = sum(dataset.num_bytes for dataset in datasets)
        self.isolate_documents = datasets[0].isolate_documents

    bits_per_byte = TokenDataset.bits_per_byte

    @property
    def parts(self) -> list[range]:
        """The rows of each corpus."""
        return [range(stop - len(part), stop) for part, stop in zip(self.datasets, self.cumulative_sizes, strict=True)]


def first_rows(dataset: Any, count: int | None) -> list[int]:
    """The rows of a measurement on `count` of them (None: all), ascending: the first ones of each corpus, in proportion
    to its rows, since the first of a mixture would be of one corpus alone.
    """
    parts: list[range] = getattr(dataset, "parts", None) or [range(len(dataset))]
    counts = first_of_each([len(part) for part in parts], count)
    return [row for part, number in zip(parts, counts, strict=True) for row in part[:number]]


def first_of_each(sizes: Sequence[int], count: int | None) -> list[int]:
    """How many of each of several lists of these sizes make `count` of all (None: all) in proportion; one more in all
    is one more of one list."""
    if count is None or count >= sum(sizes):
        return list(sizes)
    if len(sizes) == 1:
        return [count]
    places = np.concatenate([(np.arange(size) + 0.5) / max(size, 1) for size in sizes])
    lists = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(places, kind="stable")[:count]]
    return np.bincount(lists, minlength=len(sizes)).tolist()


def document_spans(tokens: np.ndarray, eos_token_id: int) -> list[tuple[int, int]]:
    """[start, stop) of each document in tokens [N], its end-of-text token included."""
    stops = [*(np.flatnonzero(tokens == eos_token_id) + 1).tolist(), tokens.size]
    return [(start, stop) for start, stop in zip([0, *stops], stops, strict=False) if start < stop]


def document_positions(tokens: np.ndarray, eos_token_id: int) -> np.ndarray:
    """Position of each token in its document, int64 [T]: 0 at the start of the row and after each end-of-text token."""
    places = np.arange(tokens.size)
    starts = np.zeros(tokens.size, dtype=np.int64)
    starts[1:] = np.where(tokens[:-1] == eos_token_id, places[1:], 0)
    return places - np.maximum.accumulate(starts)
