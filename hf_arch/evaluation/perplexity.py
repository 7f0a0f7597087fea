"""Validation loss, exactly: nats summed over every predicted token and divided once, never a mean of means.

loss = sum of nats / tokens,  perplexity = exp(loss),  bits per byte = loss / (ln 2 * bytes per token).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class TextLoss:
    """Summed negative log-likelihood `nats` over `tokens` predicted tokens of text with `bytes_per_token` UTF-8 bytes
    each.
    """

    nats: float
    tokens: int
    bytes_per_token: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite past the range of a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Does not depend on the tokenizer, so it compares runs of different vocabularies."""
        return self.loss / math.log(2) / self.bytes_per_token


def following_labels(labels: torch.Tensor, shift_labels: torch.Tensor | None = None) -> torch.Tensor:
    """What each position is to predict, int64 [B, T]: `shift_labels` where there are any, else `labels` moved by one,
    which leaves nothing (-100) for the last."""
    return F.pad(labels, (0, 1), value=-100)[:, 1:] if shift_labels is None else shift_labels


@torch.no_grad()
def sum_nats(
    model: torch.nn.Module, batches: Iterable[Mapping[str, torch.Tensor]], device: torch.device
) -> tuple[float, int]:
    """(sum of nats, number of predicted tokens) over `batches` of `input_ids` and `labels` [B, T], labels -100 not
    counted.

    Labels are unshifted, as transformers has them: position t is predicted from the tokens before it. Where a batch has
    `shift_labels` [B, T] these count instead. Auxiliary losses of the model (routers) stay out of the sum. Leaves the
    model in the mode it was in.
    """
    was_training = model.training
    model.eval()
    nats, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    try:
        for batch in batches:
            inputs = {key: value.to(device) for key, value in batch.items()}
            labels = following_labels(inputs.pop("labels"), inputs.pop("shift_labels", None))
            logits = model(**inputs, use_cache=False).logits
            counted = labels != -100
            # Row by row: a float32 copy of all the logits at once would double the peak of evaluation.
            for row_logits, row_labels in zip(logits, labels, strict=True):
                nats += F.cross_entropy(row_logits.float(), row_labels, ignore_index=-100, reduction="sum").double()
            tokens += int(counted.sum())
    finally:
        model.train(was_training)
    return nats.item(), tokens
