"""The loss of a long text, token by token: in overlapping windows, by document, and by the length of the context.

A window shows the model `window` tokens and asks for the token after each of them; the next one starts `stride` tokens
further and counts only what has not been counted yet. So every token but the first is counted once, given between
window - stride + 1 and window tokens of context (fewer at the start of the text only); a text that fits into one window
has exactly the loss of the whole sequence.

The mean loss after i tokens of context, for every i, tells whether a model uses its context: it falls for as long as
more of it helps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_arch.core.errors import ConfigError
from hf_arch.evaluation.perplexity import TextLoss
from hf_arch.evaluation.special_tokens import split_special

IGNORED = -100
Item = TypeVar("Item")


@torch.inference_mode()
def row_nats(model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood [B, T] (nats, float32, on the CPU) of the tokens `labels` [B, T], each given `input_ids`
    up to its own place; zero where a label is -100.

    Labels are shifted already: `labels[:, t]` follows `input_ids[:, t]`. Rows are padded on the right, where causal
    models do not look, so there is no mask.
    """
    logits = model(input_ids.to(model.device), use_cache=False).logits
    rows = [  # row by row: a float32 copy of all logits at once would double the peak
        F.cross_entropy(row.float(), label, ignore_index=IGNORED, reduction="none")
        for row, label in zip(logits, labels.to(model.device), strict=True)
    ]
    return torch.stack(rows).cpu()


def token_nats(
    model: PreTrainedModel, tokens: Tensor, *, window: int, stride: int | None = None, batch_size: int = 8
) -> Tensor:
    """Negative log-likelihood [T - 1] (nats, float32) of every token of `tokens` [T] but the first.

    Args:
        window: tokens that the model sees at once. stride: from window to window; None = `window` (no token is read
            twice), smaller is dearer and gives tokens more context.

    Raises:
        ConfigError: fewer than two tokens, a window below 1, or a stride outside 1 to `window`.
    """
    stride = window if stride is None else stride
    if tokens.numel() < 2:
        raise ConfigError(f"text: {tokens.numel()} tokens are too few to score; allowed: at least 2")
    if window < 1:
        raise ConfigError(f"window: {window} is not allowed; allowed: at least 1; nearest: 1")
    if not 1 <= stride <= window:
        raise ConfigError(f"stride: {stride} is not allowed; allowed: 1 to the window of {window}")
    last = tokens.numel() - 1  # the last token is asked for, never shown
    starts = range(0, max(last - window + stride, 1), stride)
    spans = [(start, min(start + window, last)) for start in starts]
    found = torch.empty(last)
    for batch in _batches(spans, batch_size):
        length = max(stop - start for start, stop in batch)
        inputs = torch.stack([_padded(tokens[start:stop], length, 0) for start, stop in batch])
        labels = torch.stack([_padded(tokens[start + 1 : stop + 1], length, IGNORED) for start, stop in batch])
        for (start, stop), nats in zip(batch, row_nats(model, inputs, labels), strict=True):
            fresh = 0 if start == 0 else window - stride
            found[start + fresh : stop] = nats[fresh : stop - start]
    return found


@dataclass(frozen=True)
class DocumentLoss:
    """Summed negative log-likelihood (nats) of a document of so many `tokens` and UTF-8 `bytes`."""

    nats: float
    tokens: int
    bytes: int

    @classmethod
    def of(cls, text: str, nats: Tensor) -> DocumentLoss:
        """The sums over a text whose tokens have these `nats`."""
        return cls(nats.double().sum().item(), nats.numel(), len(text.encode()))

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return TextLoss(self.nats, self.tokens, 1.0).perplexity

    @property
    def bits_per_byte(self) -> float:
        """Does not depend on the tokenizer."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def __add__(self, other: DocumentLoss) -> DocumentLoss:
        return DocumentLoss(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)


def document_nats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[str],
    *,
    window: int,
    stride: int | None = None,
    batch_size: int = 8,
) -> Iterator[tuple[str, Tensor]]:
    """Each document with the negative log-likelihood (nats) of its tokens, each document on its own.

    A document follows what the tokenizer puts before a text, else its end-of-text (or first) token, as in training, so
    that its first token counts too. Raises `ConfigError` where a document is empty.
    """
    first = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    for number, text in enumerate(documents):
        before, ids = split_special(tokenizer, text)
        if not ids:
            raise ConfigError(f"document {number}: it has no tokens")
        start = before or ([first] if first is not None else [])
        tokens = torch.tensor([*start, *ids])
        yield text, token_nats(model, tokens, window=window, stride=stride, batch_size=batch_size)


def document_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Iterable[str], **options: Any
) -> list[DocumentLoss]:
    """The loss of each document, in order; their sum is the loss of the corpus. Options and errors: `document_nats`."""
    return [DocumentLoss.of(text, nats) for text, nats in document_nats(model, tokenizer, documents, **options)]


@dataclass(frozen=True)
class PositionLoss:
    """Mean loss and its standard error (nats per token, float64 [T]) after 1, 2, ... T tokens of context."""

    mean: Tensor
    stderr: Tensor
    rows: int

    @classmethod
    def of(cls, nats: Tensor) -> PositionLoss:
        """The means over rows of `nats` [rows, T], at least two, each of which begins without context."""
        nats = nats.double()
        return cls(nats.mean(0), nats.std(0) / math.sqrt(len(nats)), len(nats))

    def buckets(self) -> list[tuple[int, int, float]]:
        """(first, last, mean loss) over contexts of 1, 2, 3-4, 5-8, ... tokens: few enough to print."""
        edges = [0, *(2**power for power in range(self.mean.numel().bit_length() + 1))]
        ranges = [(low, min(high, self.mean.numel())) for low, high in pairwise(edges)]
        return [(low + 1, high, self.mean[low:high].mean().item()) for low, high in ranges if low < high]

    @property
    def context_gain(self) -> float:
        """Nats per token by which the last quarter of the context beats the second: near zero for a model that does
        not use what is far away."""
        quarter = max(1, self.mean.numel() // 4)
        return (self.mean[quarter : 2 * quarter].mean() - self.mean[-quarter:].mean()).item()


def loss_by_position(model: PreTrainedModel, rows: Sequence[Tensor], *, batch_size: int = 8) -> PositionLoss:
    """The mean loss at every length of context, over `rows` of T + 1 tokens each (int64).

    Raises:
        ConfigError: fewer than two rows, or rows of one token.
    """
    if len(rows) < 2 or rows[0].numel() < 2:
        raise ConfigError(f"rows: {len(rows)} are not enough; allowed: at least 2, of at least 2 tokens")
    batches = map(torch.stack, _batches(rows, batch_size))
    return PositionLoss.of(torch.cat([row_nats(model, ids[:, :-1], ids[:, 1:]) for ids in batches]))


def _padded(tokens: Tensor, length: int, value: int) -> Tensor:
    return F.pad(tokens, (0, length - tokens.numel()), value=value)


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
