"""The kernels of `ops/kernels/pointwise.c`, which go through tensors of one shape number by number."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .native import Kernels, Pointer, threads_for

KERNELS = Kernels("pointwise.c")


def pointwise(kernels: Any, name: str, *inputs: Tensor, outputs: int = 1) -> list[Tensor]:
    """What the kernel `name` makes of tensors of one shape and dtype: so many contiguous ones of these."""
    shape, threads = inputs[0].shape, threads_for(inputs[0])
    found = [torch.empty(shape, dtype=inputs[0].dtype) for _ in range(outputs)]
    pointers = [Pointer(x) for x in (*(x.contiguous() for x in inputs), *found)]
    getattr(kernels, name)(ctypes.c_int64(shape.numel()), ctypes.c_int64(threads), *pointers)
    return found
