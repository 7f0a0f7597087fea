"""The task `perplexity`: the loss of held-out text in nats a token, bits a byte, and by the length of the context.

The text is a file of the user's; for a run, its own validation split; else that of the default corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_arch.core.errors import ConfigError
from hf_arch.data import DataOptions, PreparedData, prepare_data
from hf_arch.data.cache import data_cache
from hf_arch.data.corpora import open_corpus
from hf_arch.data.dataset import document_spans, first_rows
from hf_arch.data.find import find_data
from hf_arch.data.shakespeare import Shakespeare
from hf_arch.evaluation.perplexity import TextLoss
from hf_arch.evaluation.windows import DocumentLoss, PositionLoss, document_nats, token_nats
from hf_arch.recipe.recipe import load_recipe
from hf_arch.runs.files import CONFIG_FILE

LONGEST_WINDOW = 2048


@dataclass(frozen=True)
class TextOptions:
    """file: the text to score. stride: tokens from window to window; None = a whole window. limit: rows of a run's
    validation split, documents of anything else; None = all."""

    file: str | None = None
    stride: int | None = None
    limit: int | None = None
    batch_size: int = 8


def score_text(
    path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: TextOptions
) -> dict[str, Any]:
    """`loss`, `perplexity`, `bits_per_byte`, `tokens`, `rows` (what text), `window`, `stride`, `loss_by_position`
    ([first, last, nats] of lengths of context) and `context_gain` (nats by which the last quarter of the context beats
    the second).

    Raises:
        ConfigError: no text, or a stride that the window does not allow.
    """
    window = _longest_window(model)
    run = _run_data(path) if options.file is None else None
    if run is not None:
        return _score_run(model, run, options, min(window, run.sequence_length))
    name, documents = _documents(options)
    losses, nats = [], []
    scored = document_nats(
        model, tokenizer, documents, window=window, stride=options.stride, batch_size=options.batch_size
    )
    for text, found in scored:
        losses.append(DocumentLoss.of(text, found))
        nats.append(found)
    total = sum(losses, DocumentLoss(0.0, 0, 0))
    return {
        **_numbers(TextLoss(total.nats, total.tokens, total.bytes / total.tokens), name, window, options),
        "documents": len(documents),
        **_by_position(nats, window, options),
    }


def count_texts(path: str, options: TextOptions) -> int | None:
    """Rows, or documents, that `score_text` would score; None where only preparing or downloading its text tells."""
    run = _run_data(path) if options.file is None else None
    if run is not None:
        prepared = find_data(run).prepared
        return None if prepared is None else min(len(prepared.validation), options.limit or len(prepared.validation))
    default = DataOptions()
    if options.file is None and not Shakespeare.at(data_cache(None)).complete and default.corpus == Shakespeare.name:
        return None
    return len(_documents(options)[1])


def text_rows(
    path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: TextOptions
) -> tuple[str, Tensor, int]:
    """(what text, its tokens int64 [N], the window): what `score_text` scores, documents in a row."""
    run = _run_data(path) if options.file is None else None
    if run is not None:
        prepared = prepare_data(run, progress=False)
        return _name(prepared), _tokens(prepared, options), min(_longest_window(model), run.sequence_length)
    name, documents = _documents(options)
    ids = [token for text in documents for token in tokenizer(text)["input_ids"]]
    return name, torch.tensor(ids, dtype=torch.int64), min(_longest_window(model), max(2, len(ids)))


def _longest_window(model: PreTrainedModel) -> int:
    return min(getattr(model.config, "max_position_embeddings", None) or LONGEST_WINDOW, LONGEST_WINDOW)


def _name(prepared: PreparedData) -> str:
    return f"validation split of {Path(prepared.corpus).name}"


def _tokens(prepared: PreparedData, options: TextOptions) -> Tensor:
    validation = prepared.validation
    return torch.cat([validation[row]["input_ids"] for row in first_rows(validation, options.limit)])


def _score_run(model: PreTrainedModel, data: DataOptions, options: TextOptions, window: int) -> dict[str, Any]:
    prepared = prepare_data(data, progress=False)
    validation = prepared.validation
    tokens = _tokens(prepared, options)
    parts = [tokens]
    if data.isolate_documents:  # as in training: each by itself, without a target for its first token
        spans = document_spans(tokens.numpy(), prepared.tokenizer.eos_token_id)
        parts = [tokens[start:stop] for start, stop in spans if stop - start > 1]
    each = [token_nats(model, x, window=window, stride=options.stride, batch_size=options.batch_size) for x in parts]
    nats = torch.cat(each)
    loss = TextLoss(nats.double().sum().item(), nats.numel(), validation.num_bytes / validation.num_tokens)
    return {
        **_numbers(loss, _name(prepared), window, options),
        **_by_position(each, window, options),
    }


def isolates_documents(path: str, options: TextOptions) -> bool:
    """Whether the text of `text_rows` is of a run that keeps documents apart."""
    run = _run_data(path) if options.file is None else None
    return run is not None and run.isolate_documents


def _numbers(loss: TextLoss, name: str, window: int, options: TextOptions) -> dict[str, Any]:
    return {
        "loss": loss.loss,
        "perplexity": loss.perplexity,
        "bits_per_byte": loss.bits_per_byte,
        "tokens": loss.tokens,
        "rows": name,
        "window": window,
        "stride": options.stride or window,
    }


def _by_position(texts: Sequence[Tensor], window: int, options: TextOptions) -> dict[str, Any]:
    """The curve over all whole windows of these texts' nats. Windows that overlap do not begin without context: of
    those, only the first of each text counts."""
    alone = options.stride in (None, window)
    rows = [row for nats in texts for row in nats[: None if alone else window].split(window) if len(row) == window]
    if len(rows) < 2:  # no mean over rows, no curve
        return {}
    curve = PositionLoss.of(torch.stack(rows))
    return {"loss_by_position": [list(bucket) for bucket in curve.buckets()], "context_gain": curve.context_gain}


def _run_data(path: str) -> DataOptions | None:
    """The `data` section of the run that `path` is, or lies in; None where it belongs to none."""
    for folder in (Path(path), Path(path).parent):
        if (folder / CONFIG_FILE).is_file():
            return load_recipe(str(folder / CONFIG_FILE), []).data
    return None


def _documents(options: TextOptions) -> tuple[str, list[str]]:
    if options.file is not None:
        file = Path(options.file)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--text: {file}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
        if not text.strip():
            raise ConfigError(f"--text: {file}: there is no text in it")
        return file.name, [text]
    default = DataOptions()
    corpus = open_corpus(default.corpus, default, data_cache(None), progress=False)
    return f"validation split of {corpus.name}", list(islice(corpus.documents("validation"), options.limit))
