"""Tokenizers made from the train split, and any other that transformers can load.

All are byte-pair models of the `tokenizers` library in a `PreTrainedTokenizerFast`, so that `AutoTokenizer` loads them
without this package: `char` and `byte` have no merges, `bpe` learns them (Sennrich et al. 2016, on bytes as in GPT-2).
Text comes back exactly. `<|endoftext|>` ends every document and so also stands before the next: it is eos and bos.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hf_arch.core.errors import ConfigError, nearest
from hf_arch.data.cache import hash_text, user_path
from hf_arch.data.options import SPECIAL_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

UNKNOWN = "<|unk|>"
TRAINED = ("char", "byte", "bpe")
_VERSION = 1


def tokenizer_key(kind: str, vocab_size: int, corpus_fingerprint: str, offline: bool = False) -> str:
    """Hash that distinguishes tokenizers before they are built; of a loaded one it covers the tokenizer itself."""
    if kind == "byte":
        return hash_text(_VERSION, kind)
    if kind == "char":
        return hash_text(_VERSION, kind, corpus_fingerprint)
    if kind == "bpe":
        return hash_text(_VERSION, kind, vocab_size, corpus_fingerprint)
    loaded = load_tokenizer(kind, offline)
    return hash_text(_VERSION, loaded.backend_tokenizer.to_str(), loaded.eos_token)


def build_tokenizer(kind: str, vocab_size: int, texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerFast:
    """The tokenizer `kind` names; `texts()` gives the train split and is called for `char` and `bpe` only.

    Raises:
        ConfigError: `kind` is neither trained here nor found by transformers, or has no end-of-text token.
    """
    if kind == "char":
        return _wrap(_character_model(texts()), unk_token=UNKNOWN)
    if kind == "byte":
        return _wrap(_byte_model())
    if kind == "bpe":
        return _wrap(_train_bpe(texts(), vocab_size))
    return load_tokenizer(kind)


def load_tokenizer(name: str, offline: bool = False) -> PreTrainedTokenizerFast:
    """A fast tokenizer from a folder, a `tokenizer.json`, or the Hub (`offline`: its cache), padding on the left."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerBase
    path = user_path(name)
    try:
        if path.is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)
            for token in ("<|endoftext|>", "</s>", "<eos>"):
                if tokenizer.eos_token is None and token in tokenizer.get_vocab():
                    tokenizer.eos_token = token
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                str(path) if path.is_dir() else name, trust_remote_code=False, local_files_only=offline
            )
    except Exception as error:
        near = nearest(name, TRAINED)
        hint = f"nearest: {near!r}; " if near else ""
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"data.tokenizer: {name!r} could not be loaded ({reason[:160]}); {hint}allowed: {', '.join(TRAINED)}, the "
            "path of a tokenizer, a Hub id"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(
            f"data.tokenizer: {name!r} has no fast version; allowed: {', '.join(TRAINED)}, a fast tokenizer"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"data.tokenizer: {name!r} has no eos token to end documents with; set one and save it again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding needs: one more than the largest id, which is not the number of entries where ids are
    left out between them."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the files that `AutoTokenizer.from_pretrained(folder)` reads."""
    os.makedirs(folder, exist_ok=True)
    tokenizer.save_pretrained(str(folder))


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that `save_tokenizer` has written."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def _wrap(model: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    pad, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=pad,
        eos_token=end,
        bos_token=end,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **special,
    )


def _character_model(texts: Iterable[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models

    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    entries = [*SPECIAL_TOKENS, UNKNOWN, *sorted(characters)]
    model = Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, [], unk_token=UNKNOWN))
    model.decoder = decoders.Fuse()
    return model


def _byte_model() -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # ByteLevel writes each byte as one printable character; sorted by the byte that it stands for.
    entries = [*SPECIAL_TOKENS, *(byte_character(byte) for byte in range(256))]
    model = Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    return model


def byte_character(byte: int) -> str:
    """The character that stands for a byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    if byte in printable:
        return chr(byte)
    return chr(256 + sum(other not in printable for other in range(byte)))


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=[byte_character(byte) for byte in range(256)],
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return model
