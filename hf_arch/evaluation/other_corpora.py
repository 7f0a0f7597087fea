"""Held-out text of other corpora besides the trained one: `evaluation.corpora: [python-docs, my_notes.txt]`.

Each is read by name or path as `data.corpus` is, its validation documents are tokenised by the run's own tokenizer, and
scored document by document. Bits per byte compare it with the trained corpus; a loss per token would not, since the
tokenizer was made for the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_arch.core.errors import ConfigError
from hf_arch.data import DataOptions
from hf_arch.data.cache import data_cache
from hf_arch.data.corpora import open_corpus
from hf_arch.data.corpus import Corpus
from hf_arch.evaluation.perplexity import TextLoss
from hf_arch.evaluation.windows import document_losses


def read_corpora(
    names: tuple[str, ...], options: DataOptions, tokenizer: PreTrainedTokenizerBase, tokens: int
) -> dict[str, list[str]]:
    """{corpus: its first held-out documents, `tokens` tokens of them or as many as there are}.

    Raises:
        ConfigError: a corpus that cannot be read, has no text, or has characters that the tokenizer does not know.
    """
    found = {}
    for name in names:
        own = dataclasses.replace(options, corpus=name, mixture=None)
        documents: list[str] = []
        counted = 0
        for text in _open(name, own).documents("validation"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
                raise ConfigError(
                    f"evaluation.corpora: {name!r} has characters that the tokenizer {options.tokenizer!r} does not "
                    "know; leave it out, or train with data.tokenizer: bpe"
                )
            cut = tokenizer.decode(ids[: tokens - counted]) if counted + len(ids) > tokens else text
            documents += [cut] if ids else []
            counted += len(ids)
            if counted >= tokens:
                break
        if not documents:
            raise ConfigError(f"evaluation.corpora: {name!r} has no held-out text")
        found[name] = documents
    return found


def _open(name: str, options: DataOptions) -> Corpus:
    """The corpus; errors name the key that asked for it."""
    try:
        return open_corpus(name, options, data_cache(None), progress=False)
    except ConfigError as error:
        raise ConfigError(f"evaluation.corpora: {str(error).removeprefix('data.corpus: ')}") from error


def corpus_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpora: Mapping[str, list[str]], window: int
) -> dict[str, Any]:
    """{corpus: `loss` (nats per token), `perplexity`, `bits_per_byte`, `tokens`, `documents`} in windows."""
    scored = {}
    for name, documents in corpora.items():
        losses = document_losses(model, tokenizer, documents, window=window)
        nats, tokens, size = (sum(getattr(one, key) for one in losses) for key in ("nats", "tokens", "bytes"))
        text = TextLoss(nats, tokens, size / tokens)
        scored[name] = {
            "loss": text.loss,
            "perplexity": text.perplexity,
            "bits_per_byte": text.bits_per_byte,
            "tokens": tokens,
            "documents": len(documents),
        }
    return scored
