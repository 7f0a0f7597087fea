"""Loaded weights lie in memory as new ones do, since a matrix product's rounding may depend on where its operands lie.

A file holds its tensors one after another, so that after one of an odd size, such as a learned factor of one number,
all others lie off the 64 bytes at which torch starts a new tensor; the loader maps them where they are.
"""

from __future__ import annotations

import torch
from torch import nn

ALIGNMENT = 64  # bytes


def align_weights(model: nn.Module) -> None:
    """Copy every plain CPU parameter and buffer that does not start at a multiple of 64 bytes."""
    for held in (*model.parameters(), *model.buffers()):
        if type(held.data) is torch.Tensor and held.device.type == "cpu" and held.data_ptr() % ALIGNMENT:
            held.data = held.data.clone()
