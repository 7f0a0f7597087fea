"""Activations, by name: `gelu`, `gelu_tanh` (GPT-2's `gelu_new`), `silu`, `relu`, `relu2` (squared ReLU, So et al.
2021), `leaky_relu`, `sigmoid`, `logsigmoid`, `tanh`, `identity`, `powlu`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.registry import ACTIVATIONS
from ..ops.gelu import tanh_gelu
from ..ops.one_row import RowKernels
from ..ops.silu_gate import silu_gated
from ..ops.squared_relu import squared_relu


def gated(x: Tensor, gate: Tensor, activation: Callable[[Tensor], Tensor], row: RowKernels | None = None) -> Tensor:
    """`activation(gate) * x`, in one pass where that is known; of one row where its kernels are given."""
    if row is not None and activation is F.silu and x.dtype == gate.dtype == torch.float32 and x.shape == gate.shape:
        return row.silu_gated(x.contiguous(), gate.contiguous())
    return silu_gated(x, gate) if activation is F.silu else activation(gate) * x


def activated(x: Tensor, activation: Callable[[Tensor], Tensor], row: RowKernels | None) -> Tensor:
    """`activation(x)`; of one row by its kernel, where there is one."""
    if row is None or activation is not tanh_gelu or x.dtype != torch.float32:
        return activation(x)
    return row.tanh_gelu(x.contiguous())


@ACTIVATIONS.register("identity")
def identity(x: Tensor) -> Tensor:
    return x


@ACTIVATIONS.register("powlu")
def powlu(x: Tensor) -> Tensor:
    """`sigmoid(x) x^(3 / (sqrt(x) + 1))` for x > 0, else `sigmoid(x) x`: a SiLU that is flatter far from 0."""
    positive = torch.where(x > 0, x, 1)  # 1 where it is not read, for the gradient of the root
    return torch.sigmoid(x) * torch.where(x > 0, positive ** (3 / (positive.sqrt() + 1)), x)


@ACTIVATIONS.register("leaky_relu")
def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.01)


ACTIVATIONS.register("gelu")(F.gelu)
ACTIVATIONS.register("gelu_tanh")(tanh_gelu)
ACTIVATIONS.register("silu")(F.silu)
ACTIVATIONS.register("relu")(F.relu)
ACTIVATIONS.register("sigmoid")(torch.sigmoid)
ACTIVATIONS.register("logsigmoid")(F.logsigmoid)
ACTIVATIONS.register("tanh")(torch.tanh)
ACTIVATIONS.register("relu2")(squared_relu)
