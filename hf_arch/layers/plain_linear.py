"""Whether a Linear layer is nothing but its weight, so that a faster form may read it instead of calling the module.

Adapters, quantised or sharded weights, hooks and parametrisations all put something around or into a layer. Whoever
reads `layer.weight` leaves that out without an error; whoever asks here first does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.compat import is_hooked, parameter_of, watches_modules
from ..ops.native import shapes_alone
from ..ops.one_row import RowKernels, row_kernels
from ..ops.parts import linear_parts

_WHOLE = (nn.Parameter, torch.Tensor)


def is_plain_linear(module: nn.Module, kind: type[nn.Linear] = nn.Linear) -> bool:
    """Whether `module(x)` of that class is `x @ weight.T + bias` and nothing else.

    Not so for: any subclass or wrapper (PEFT's layers, quantised layers, `torch.nn.utils.parametrize`, FSDP2's sharded
    modules), hooks (old-style weight norm, tensor parallelism), a `forward` replaced on the instance (accelerate's
    offloading), weights of another tensor class (torchao, DTensor), and weights that are not whole here (ZeRO-3).
    """
    if type(module) is not kind or is_hooked(module):
        return False
    weight, bias = _weight_and_bias(module)
    return (
        type(weight) in _WHOLE
        and (bias is None or type(bias) in _WHOLE)
        and weight.is_floating_point()
        and tuple(weight.shape) == (module.out_features, module.in_features)
    )


def is_readable(layer: nn.Module, kind: type[nn.Linear] = nn.Linear) -> bool:
    """Whether another form may read the weight of such a layer in training, since it is plain and nobody listens."""
    if type(layer) is not kind or watches_modules() or torch.compiler.is_compiling():
        return False
    # who counts memory has put tensors without numbers in the place of weights
    return is_plain_linear(layer, kind) or shapes_alone()


def project(layer: nn.Module, x: Tensor, row: RowKernels | None = None) -> Tensor:
    """`layer(x)` for x [..., I] and a Linear layer; in a decoding step by a kernel, whose sums are in another order.

    Args:
        row: of the context, by who has one: what x is need not be asked again.
    """
    if torch.compiler.is_compiling() or x.numel() != x.shape[-1]:
        return layer(x)
    row = row or row_kernels(x)
    out = None if row is None else row_product(layer, x, row)
    return layer(x) if out is None else out


def row_product(layer: nn.Module, x: Tensor, row: RowKernels) -> Tensor | None:
    """`layer(x)` of one row [1, 1, I] by its kernel, where the layer is a plain one of fp32; else None."""
    if not is_plain_linear(layer):
        return None
    weight, bias = _weight_and_bias(layer)
    if weight.shape[1] != x.shape[-1] or type(x) is not Tensor:
        return None
    for each in (x, weight, bias):
        if each is not None and (each.dtype != torch.float32 or not each.is_contiguous()):
            return None
    return row.linear(x, weight, bias)


def project_parts(layer: nn.Module, x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """`project(layer, x).split(widths, -1)`; in training on a CPU by a product for each part, which is contiguous."""
    if torch.is_grad_enabled() and is_readable(layer):
        return linear_parts(x, *_weight_and_bias(layer), widths)
    return project(layer, x).split(list(widths), -1)


def _weight_and_bias(layer: nn.Module) -> tuple[Any, Any]:
    return parameter_of(layer, "weight"), parameter_of(layer, "bias")
