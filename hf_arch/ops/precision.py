"""The precision of states: fp32 whatever the activations, also under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def state_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of states and decays: fp32 whatever the activations, fp64 as soon as one of the tensors is."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Context in which products keep the dtype of their operands; states must not be rounded to bf16."""
    device = tensor.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
