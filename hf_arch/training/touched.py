"""How many parameters a token passes through, measured, where a cost says that it leaves some out (experts that were
not chosen): a dense part may say so too, and is then small where active parameters are compared.

A number of a weight counts where the logits of one token by itself change with it at all. Rows that a ReLU leaves out
do not, nor queries of an attention over one key, so that this is never too large.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_arch.models.cost import model_cost
from hf_arch.training.branches import undisturbed


def touched_share(model: Any, row: Tensor) -> float | None:
    """Of the parameters that the cost calls active, how many times as many take part in the logits of the first token
    of a row [1, T]; None where a part takes no single token."""
    with undisturbed(model):
        active = model_cost(model.config, row.shape[1]).params_active
    named = [one for one in model.parameters() if one.requires_grad]
    whole = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    with undisturbed(model), torch.enable_grad():
        try:
            logits = model(input_ids=row[:, :1], use_cache=False).logits
            found = torch.autograd.grad(logits.float().square().sum(), named, allow_unused=True)
        except Exception:  # a part of a plugin may raise anything
            return None
    touched = sum(
        one.numel() if one.ndim < 2 or id(one) in whole else 0 if gradient is None else int(gradient.count_nonzero())
        for one, gradient in zip(named, found, strict=True)
    )
    return touched / active if active else None
