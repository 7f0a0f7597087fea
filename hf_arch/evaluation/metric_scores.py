"""Metrics of plugins as tasks of `hf-arch eval`, on the text that the task `perplexity` reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_arch.core.errors import ConfigError
from hf_arch.data.dataset import document_positions
from hf_arch.evaluation.metric import Measurement, parse_metrics
from hf_arch.evaluation.text_loss import TextOptions, isolates_documents, text_rows


def score_metrics(
    path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], options: TextOptions
) -> dict[str, dict[str, Any]]:
    """{metric: {metric: value, rows, tokens, window}} with the metrics' default options, over whole windows of the text
    (the validation rows of a run, as they were trained).

    Raises `ConfigError` where there is no text, or not a window of it.
    """
    rows, tokens, window = text_rows(path, model, tokenizer, options)
    whole = tokens[: len(tokens) // window * window].view(-1, window)
    if not len(whole):
        raise ConfigError(f"--text: {rows} has {len(tokens)} tokens; metrics need {window}")
    measurement = Measurement(parse_metrics(names))
    border = tokenizer.eos_token_id if isolates_documents(path, options) else None
    measurement.add(model, _batches(whole, options.batch_size, border), model.device)
    facts = {"rows": rows, "tokens": whole.numel(), "window": window}
    return {name: {name: value, **facts} for name, value in measurement.values().items()}


def _batches(rows: Tensor, size: int, border: int | None) -> Iterator[dict[str, Tensor]]:
    """`border`: the token that ends a document, where documents are isolated."""
    for part in torch.split(rows, size):
        if border is None:
            yield {"input_ids": part, "labels": part}
            continue
        positions = torch.stack([torch.from_numpy(document_positions(row.numpy(), border)) for row in part])
        yield {"input_ids": part, "labels": part.masked_fill(positions == 0, -100), "position_ids": positions}
