"""The text behind token rows, in bytes: what runs of two tokenizers have in common, or have not.

Tokens, rows and their order follow the tokenizer; the text does not. `text_bytes` counts the bytes that a run saw and
was scored on, and its fingerprint is of the text itself: equal for equal text under any tokenizer that keeps every byte
of it. One that does not (unknown characters, lower case) has another text, and another fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from hf_arch.data.dataset import MixedDataset, TokenDataset
from hf_arch.data.tokenizer import vocabulary_size

WINDOWS = 64
"""Places of a text that its fingerprint looks at, evenly apart."""
WINDOW_BYTES = 64
READ_BYTES = 50_000_000
"""Of each text from its beginning: where the places lie."""
_CHUNK = 1_000_000


def text_bytes(
    tokenizer: PreTrainedTokenizerFast,
    train: TokenDataset | MixedDataset,
    held_out: TokenDataset | MixedDataset,
    *,
    tokens_seen: float,
    tokens_scored: float,
) -> dict[str, Any]:
    """`seen` and `scored`: bytes of text in so many tokens, by the mean of the split; `held_out`: bytes of all held-out
    text; `fingerprint`: of both texts. {} for a mixture, whose bytes a token depend on how its corpora are drawn."""
    if isinstance(train, MixedDataset) or isinstance(held_out, MixedDataset):
        return {}
    pieces = token_pieces(tokenizer)
    digest = hashlib.sha256()
    for split in (train, held_out):
        digest.update(f"{split.num_bytes};".encode() + b"".join(_windows(split, pieces)))
    return {
        "seen": tokens_seen * train.num_bytes / train.num_tokens,
        "scored": tokens_scored * held_out.num_bytes / held_out.num_tokens,
        "held_out": held_out.num_bytes,
        "fingerprint": digest.hexdigest()[:16],
    }


def token_pieces(tokenizer: PreTrainedTokenizerFast) -> list[bytes]:
    """The UTF-8 bytes of text that each token stands for, [`vocabulary_size`]; none for special tokens."""
    kinds = _decoder_kinds(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    pieces = [b""] * vocabulary_size(tokenizer)
    special = set(tokenizer.all_special_ids)
    for piece, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        if "ByteLevel" in kinds and all(sign in _byte_signs() for sign in piece):
            pieces[index] = bytes(_byte_signs()[sign] for sign in piece)
        elif piece.startswith("<0x") and piece.endswith(">") and "ByteFallback" in kinds:
            pieces[index] = bytes([int(piece[3:-1], 16)])
        else:
            pieces[index] = piece.replace("▁", " ").encode()  # SentencePiece's sign for a space
    return pieces


@cache
def _byte_signs() -> dict[str, int]:
    """{character: byte} of byte-level vocabularies: printable bytes are Latin-1 characters, the others follow from
    U+0100 on in their order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _decoder_kinds(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    nested = (_decoder_kinds(part) for part in decoder.get("decoders", []))
    return {decoder["type"]}.union(*nested)


def _windows(split: TokenDataset, pieces: list[bytes]) -> list[bytes]:
    """The bytes at places evenly apart, by their place in the text, whatever tokens they are of."""
    lengths = np.asarray([len(piece) for piece in pieces], dtype=np.int64)
    last = max(0, min(split.num_bytes, READ_BYTES) - WINDOW_BYTES)
    places = np.linspace(0, last, WINDOWS).astype(np.int64).tolist()
    found: list[bytes] = []
    before = 0  # bytes of all tokens that were read
    for start in range(0, split.num_tokens, _CHUNK):
        ends = before + np.cumsum(lengths[split.stream.read(start, min(start + _CHUNK, split.num_tokens))])
        while len(found) < len(places) and places[len(found)] < ends[-1]:
            place = places[len(found)]
            index = int(np.searchsorted(ends, place, side="right"))
            skipped = place - (int(ends[index - 1]) if index else before)
            found.append(_text_at(split, start + index, pieces)[skipped : skipped + WINDOW_BYTES])
        if len(found) == len(places):
            break
        before = int(ends[-1])
    return found


def _text_at(split: TokenDataset, index: int, pieces: list[bytes]) -> bytes:
    """At least a window and a token more, from this token on, where there is so much left."""
    text, enough = b"", WINDOW_BYTES + max(map(len, pieces))
    while index < split.num_tokens and len(text) < enough:
        tokens = split.stream.read(index, min(index + WINDOW_BYTES, split.num_tokens))
        text += b"".join(pieces[token] for token in tokens.tolist())
        index += len(tokens)
    return text
