"""The classification heads, and their losses under gradient accumulation.

transformers' generic heads say by their `**kwargs` that they take `num_items_in_batch`, and drop it: a step in four
calls has four times the loss. Here a loss is the sum over labels divided by `num_items_in_batch` (the labels of the
whole step that are not -100, as Trainer counts them), so that calls with unequal numbers of labels weigh what they
should.

They also look for a sequence's last token by its id: the last one that is not `pad_token_id`, whatever the mask says. A
text that ends with its end-of-text token, where that pads too (as in GPT-2), is then read one token early, and
embeddings padded on the right are read at padding. Here the mask decides, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils import can_return_tuple

from ..layers.compat import (
    CACHE_ARGUMENT,
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from ..layers.pair_masks import valid_tokens
from .arguments import accept_either_name, cache_of
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
    """A label for the whole sequence, read at its last token that is not padding."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """`logits` [B, L] at the last valid token of each row: by `attention_mask`, else the last whose id is not that
        of padding (embeddings without a mask have none).

        Raises:
            ValueError: several rows of ids, and neither a mask nor a padding token says where they end.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = out.last_hidden_state
        last = self._last_tokens(input_ids, attention_mask, hidden)
        logits = self.score(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])
        items = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        return SequenceClassifierOutputWithPast(
            loss=None if labels is None else sequence_loss(self, logits, labels, **items),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            **{CACHE_ARGUMENT: cache_of(out)},
        )

    def _last_tokens(self, input_ids: Tensor | None, attention_mask: Any, hidden: Tensor) -> Tensor:
        """[B] int64: the last valid token of each row of hidden [B, T, D]."""
        batch, length = hidden.shape[:2]
        padding = self.config.pad_token_id
        if isinstance(attention_mask, Tensor):
            valid = valid_tokens(attention_mask, length).expand(batch, length).to(hidden.device)
        elif input_ids is not None and padding is not None:
            valid = (input_ids != padding).to(hidden.device)
        elif input_ids is None or batch == 1:
            valid = torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
        else:
            raise ValueError(
                f"attention_mask: nothing says where these {batch} sequences end, since the config has no "
                "pad_token_id; pass a mask, of ones where there is no padding"
            )
        index = torch.arange(length, device=hidden.device)
        return torch.where(valid, index, 0).amax(1)


class ArchForTokenClassification(GenericForTokenClassification, ArchPreTrainedModel):
    """A label for each token."""

    forward = accept_either_name(counting_items(GenericForTokenClassification.forward))
    label_loss = token_loss


class ArchForQuestionAnswering(GenericForQuestionAnswering, ArchPreTrainedModel):
    """Start and end of an answer span."""

    forward = accept_either_name(GenericForQuestionAnswering.forward)
    accepts_loss_kwargs: ClassVar[bool] = False
    """Trainer counts no items where there are no `labels`: it divides the mean losses of the calls of a step."""
