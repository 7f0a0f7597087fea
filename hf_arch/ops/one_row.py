"""Products and norms of a single row in a decoding step on a CPU, where the general kernels are slow.

On AMD's processors MKL takes a product of one row by a path that reads weights [O, I] with I up to about 2,048 at half
the speed at which it reads the same memory as a batch of [O / G, I]. The batch is a view: nothing is copied. On Intel's
it is the other way round, and the batch takes twice as long.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..core.processor import processor_says
from .compat import watched

WIDEST = 2048
"""Inputs of more features are read as fast or faster by the general product."""


def is_plain_row(x: Tensor, *others: Tensor | None) -> bool:
    """Whether x is one row [1, ..., D] of fp32 on the CPU, as the `others` are, of which no gradient is needed; and
    nobody records, transforms or casts the operations."""
    if watched() or x.dtype != torch.float32 or x.numel() != x.shape[-1] or x.device.type != "cpu":
        return False
    if type(x) is not Tensor or torch.is_autocast_enabled("cpu"):
        return False
    recording = torch.is_grad_enabled()
    if recording and x.requires_grad:
        return False
    for other in others:
        if other is not None and (other.dtype != torch.float32 or (recording and other.requires_grad)):
            return False
    return True


@lru_cache(maxsize=1)
def batches_are_faster() -> bool:
    """Whether `row_product` is the faster one on this processor. Its maker decides, not a measurement: what a model
    says must not depend on what else the machine does."""
    return torch.backends.mkl.is_available() and processor_says("vendor_id") == "AuthenticAMD"


@lru_cache
def groups_of(rows: int) -> int:
    """Into how many equal groups a weight of so many rows is cut: the least that can be, 1 where that would be many."""
    return next((groups for groups in range(2, 33) if rows % groups == 0), 1)


def row_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear(x, weight, bias)` of one row [1, ..., I], with weight [O, I] and bias [O] or None: [1, ..., O]."""
    rows, width = weight.shape
    groups = groups_of(rows)
    matrices = weight.view(groups, -1, width)
    column = x.view(1, width).t().expand(groups, width, 1)  # steps of (0, 1, I): of (0, 1, 1) no kernel is found
    out = torch.bmm(matrices, column) if bias is None else torch.baddbmm(bias.view(groups, -1, 1), matrices, column)
    return out.view(*x.shape[:-1], rows)
