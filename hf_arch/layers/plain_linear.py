"""Whether a Linear layer is nothing but its weight, so that a faster form may read it instead of calling the module.

Adapters, quantised or sharded weights, hooks and parametrisations all put something around or into a layer. Whoever
reads `layer.weight` leaves that out without an error; whoever asks here first does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.compat import is_hooked, watches_modules
from ..ops.native import shapes_alone
from ..ops.one_row import WIDEST, batches_are_faster, is_plain_row, row_product
from ..ops.parts import linear_parts

_WHOLE = (nn.Parameter, torch.Tensor)


def is_plain_linear(module: nn.Module, kind: type[nn.Linear] = nn.Linear) -> bool:
    """Whether `module(x)` is `x @ weight.T + bias` and nothing else, and the module of that class.

    Not so for: any subclass or wrapper (PEFT's layers, quantised layers, `torch.nn.utils.parametrize`, FSDP2's sharded
    modules), hooks (old-style weight norm, tensor parallelism), a `forward` replaced on the instance (accelerate's
    offloading), weights of another tensor class (torchao, DTensor), and weights that are not whole here (ZeRO-3).
    """
    if type(module) is not kind or is_hooked(module):
        return False
    weight, bias = module.weight, module.bias
    return (
        type(weight) in _WHOLE
        and (bias is None or type(bias) in _WHOLE)
        and weight.is_floating_point()
        and tuple(weight.shape) == (module.out_features, module.in_features)
    )


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` for x [..., I] and a Linear layer; in a decoding step, on processors where there is one, by a faster
    product, whose sums may be in another order."""
    if torch.compiler.is_compiling() or x.numel() != x.shape[-1] or not batches_are_faster():
        return layer(x)
    if watches_modules() or not is_plain_linear(layer):
        return layer(x)
    weight: Any = layer.weight
    bias: Any = layer.bias
    if weight.shape[1] > WIDEST or not weight.is_contiguous() or not is_plain_row(x, weight, bias):
        return layer(x)
    return row_product(x, weight, bias)


def weights_alone(*layers: tuple[nn.Module, type[nn.Linear]]) -> bool:
    """Whether training on a CPU may read the weights of all of these, of their classes, instead of calling them."""
    if torch.compiler.is_compiling() or watches_modules() or not torch.is_grad_enabled():
        return False
    # who counts memory has put tensors without numbers in the place of weights
    return all(type(layer) is kind and (is_plain_linear(layer, kind) or shapes_alone()) for layer, kind in layers)


def project_parts(layer: nn.Module, x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """`project(layer, x).split(widths, -1)`; in training on a CPU by a product for each part, which is contiguous."""
    if weights_alone((layer, nn.Linear)):
        weight: Any = layer.weight
        bias: Any = layer.bias
        return linear_parts(x, weight, bias, widths)
    return project(layer, x).split(list(widths), -1)
