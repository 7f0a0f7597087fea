"""Activations, by name: `gelu`, `gelu_tanh` (GPT-2's `gelu_new`), `silu`, `relu`, `relu2` (squared ReLU, So et al.
2021), `leaky_relu`, `sigmoid`, `identity`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..registry import ACTIVATIONS


@ACTIVATIONS.register("gelu_tanh")
def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


@ACTIVATIONS.register("relu2")
def relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


@ACTIVATIONS.register("identity")
def identity(x: Tensor) -> Tensor:
    return x


@ACTIVATIONS.register("leaky_relu")
def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.01)


ACTIVATIONS.register("gelu")(F.gelu)
ACTIVATIONS.register("silu")(F.silu)
ACTIVATIONS.register("relu")(F.relu)
ACTIVATIONS.register("sigmoid")(torch.sigmoid)
