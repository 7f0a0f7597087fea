"""How much of what a model is scored on it was trained on: rows of a probe, and text, word for word.

A score on such rows is of memory, and ranks models otherwise than one on new rows. Text of a corpus repeats itself a
little (licences, headings); a file with the same documents twice, or a probe with fewer different rows than are drawn,
has much of its held-out part in the other.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json, write_json
from hf_arch.data.cache import data_cache, hash_text, locked
from hf_arch.data.dataset import MixedDataset, TokenDataset, TokenStream
from hf_arch.numerics import NUMERICS_VERSION

WINDOWS = 64
"""Places of the held-out text that are looked for in the text to train on."""
WINDOW_BYTES = 200
"""How much text is the same word for word, at a place that counts."""
SAMPLE = 64
"""Tokens at each place of a fingerprint."""
HASHED_WHOLE = 20_000_000
"""Tokens of a split up to which its fingerprint is of all of them."""
SEARCHED = 50_000_000
"""Tokens of the text to train on that are searched, from its beginning."""
_CHUNK = 4_000_000
_FIRST = 8  # a power of two
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(48)
"""Bits of a sum that a look into a table leaves out: the few places that the rest picks are compared in full."""


def seen_rows(train: torch.Tensor, test: torch.Tensor) -> float:
    """The share of the rows of `test` that are rows of `train`; both int64 [N, T], 0.0 where their lengths differ."""
    if train.shape[1] != test.shape[1]:
        return 0.0
    known = {row.tobytes() for row in train.numpy()}
    return sum(row.tobytes() in known for row in test.numpy()) / len(test)


def seen_text(train: TokenDataset | MixedDataset, held_out: TokenDataset | MixedDataset) -> dict[str, float]:
    """The share of places in the held-out text, evenly apart, whose text stands in the text to train on
    (`seen_share`), and of places in that whose text stands in it once more (`repeated_share`): held-out text that is
    found where the rest does not repeat itself was put there. {} where there is too little to say. Of a mixture each
    corpus is looked for in itself, and the one with most is told of. Each pair of texts is searched once: the answer is
    kept in the cache for these files as they are."""
    pairs = zip(_corpora(train), _corpora(held_out), strict=False)
    found = [shares for one, other in pairs if (shares := _kept(one, other)) is not None]
    if not found:
        return {}
    seen, repeated = max(found)
    return {"seen_share": seen, "repeated_share": repeated}


def text_fingerprint(*splits: TokenDataset | MixedDataset) -> str:
    """Hash over the tokens of each split (of a long one over those at places evenly apart) and its length: equal for
    equal text, whatever a corpus says of itself. A plugin's corpus names its own fingerprint, and may read other bytes
    elsewhere."""
    digest = hashlib.sha256()
    for dataset in (one for split in splits for one in _corpora(split)):
        digest.update(f"{dataset.num_tokens};".encode())
        if dataset.num_tokens <= HASHED_WHOLE:
            for begin in range(0, dataset.num_tokens, _CHUNK):
                part = dataset.stream.read(begin, min(begin + _CHUNK, dataset.num_tokens))
                digest.update(part.astype("<i8").tobytes())
            continue
        for place in np.linspace(0, max(0, dataset.num_tokens - SAMPLE), WINDOWS).astype(np.int64).tolist():
            digest.update(dataset.stream.read(place, min(place + SAMPLE, dataset.num_tokens)).astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _corpora(dataset: TokenDataset | MixedDataset) -> list[TokenDataset]:
    return list(dataset.datasets) if isinstance(dataset, MixedDataset) else [dataset]


def _kept(train: TokenDataset, held_out: TokenDataset) -> tuple[float, float] | None:
    """`_seen`, from the cache where it was asked for these texts before."""
    numbers = (NUMERICS_VERSION, WINDOWS, WINDOW_BYTES, SEARCHED)
    texts = [(one.stream.files(), one.num_tokens, one.num_bytes) for one in (train, held_out)]
    key, cache = hash_text(*numbers, *texts)[:32], data_cache()
    file = cache / "seen" / f"{key}.json"
    with suppress(ConfigError):  # not there yet
        return _read(file)
    try:
        with locked(cache, f"seen-{key}"):  # the runs of a set end together
            with suppress(ConfigError):
                return _read(file)
            shares = _seen(train, held_out)
            write_json(file, {"shares": shares})
            return shares
    except OSError:  # a cache that cannot be written to
        return _seen(train, held_out)


def _read(file: Path) -> tuple[float, float] | None:
    shares = read_json(file)["shares"]
    return None if shares is None else (shares[0], shares[1])


def _seen(train: TokenDataset, held_out: TokenDataset) -> tuple[float, float] | None:
    length = max(_FIRST, round(WINDOW_BYTES * held_out.num_tokens / max(1, held_out.num_bytes)))
    end = min(train.num_tokens, SEARCHED)
    if min(held_out.num_tokens, end) < 2 * length:
        return None
    windows: list[tuple[np.ndarray, int]] = []  # each with its own place in the text to train on, -1 for none
    for dataset, size in ((held_out, held_out.num_tokens), (train, end)):
        for place in np.unique(np.linspace(0, size - length, WINDOWS).astype(np.int64)).tolist():
            windows.append((dataset.stream.read(place, place + length), place if dataset is train else -1))
    found = _found(train.stream, windows, length, end)
    held = sum(place < 0 for _, place in windows)
    return sum(index < held for index in found) / held, sum(index >= held for index in found) / (len(windows) - held)


def _found(stream: TokenStream, windows: list[tuple[np.ndarray, int]], length: int, end: int) -> set[int]:
    """Which windows stand in the first `end` tokens of a stream, but for their own place there: by a sum over their
    first tokens, then in full."""
    wanted: dict[int, list[int]] = {}
    for index, (window, _own) in enumerate(windows):
        wanted.setdefault(int(_sums(window[:_FIRST])[0]), []).append(index)
    possible, found = np.zeros(1 << (64 - int(_LOW)), dtype=bool), set[int]()
    possible[np.fromiter(wanted, dtype=np.uint64) >> _LOW] = True
    for start in range(0, end, _CHUNK):
        tokens = stream.read(start, min(end, start + _CHUNK + length))
        if len(tokens) < length:
            break
        sums = _sums(tokens)
        for place in np.flatnonzero(possible[sums >> _LOW]).tolist():
            for index in wanted.get(int(sums[place]), ()):
                window, own = windows[index]
                if (
                    index not in found
                    and start + place != own
                    and np.array_equal(tokens[place : place + length], window)
                ):
                    found.add(index)
    return found


def _sums(tokens: np.ndarray) -> np.ndarray:
    """A number for every `_FIRST` tokens in a row, equal where these are: sum_i token_i factor^i, half by half."""
    total, factor, width = tokens.astype(np.uint64), _FACTOR, 1
    with np.errstate(over="ignore"):  # products are modulo 2^64
        while width < _FIRST:
            total = total[:-width] + factor * total[width:]
            factor, width = factor * factor, 2 * width
    return total
