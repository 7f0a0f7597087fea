"""The classification heads, and their losses under gradient accumulation.

transformers' generic heads say by their `**kwargs` that they take `num_items_in_batch`, and drop it: a step in four
calls has four times the loss. Here a loss is the sum over labels divided by `num_items_in_batch` (the labels of the
whole step that are not -100, as Trainer counts them), so that calls with unequal numbers of labels weigh what they
should.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

from torch import Tensor
from transformers.utils import can_return_tuple

from ..layers.compat import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from .arguments import accept_either_name
from .loss import IGNORE_INDEX
from .pretrained import ArchPreTrainedModel


def counting_items(generic: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a generic head, whose loss (`self.label_loss(logits, labels, **items)`) honours
    `num_items_in_batch`."""

    @can_return_tuple
    @wraps(generic)
    def forward(
        self: Any,
        *args: Any,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        out = generic(self, *args, return_dict=True, **kwargs)
        if labels is not None:
            items = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            out.loss = self.label_loss(out.logits, labels, **items)
        return out

    return forward


def sequence_loss(self: Any, logits: Tensor, labels: Tensor, **items: Any) -> Tensor:
    """Of logits [B, L] and labels [B] (classes), or [B] or [B, L] (regression, several labels at once)."""
    loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **items)
    if not items or self.config.problem_type == "single_label_classification":
        return loss
    return loss * ((labels != IGNORE_INDEX).sum().to(loss.device) / items["num_items_in_batch"])


def token_loss(self: Any, logits: Tensor, labels: Tensor, **items: Any) -> Tensor:
    """Of logits [B, T, L] and labels [B, T]."""
    return self.loss_function(logits, labels, self.config, **items)


class ArchForSequenceClassification(GenericForSequenceClassification, ArchPreTrainedModel):
    """A label for the whole sequence, read at its last token."""

    forward = accept_either_name(counting_items(GenericForSequenceClassification.forward))
    label_loss = sequence_loss


class ArchForTokenClassification(GenericForTokenClassification, ArchPreTrainedModel):
    """A label for each token."""

    forward = accept_either_name(counting_items(GenericForTokenClassification.forward))
    label_loss = token_loss


class ArchForQuestionAnswering(GenericForQuestionAnswering, ArchPreTrainedModel):
    """Start and end of an answer span."""

    forward = accept_either_name(GenericForQuestionAnswering.forward)
    accepts_loss_kwargs: ClassVar[bool] = False
    """Trainer counts no items where there are no `labels`: it divides the mean losses of the calls of a step."""
