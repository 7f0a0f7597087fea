"""Whether a Linear layer is nothing but its weight, so that a faster form may read it instead of calling the module.

Adapters, quantised or sharded weights, hooks and parametrisations all put something around or into a layer. Whoever
reads `layer.weight` leaves that out without an error; whoever asks here first does not.
"""

from __future__ import annotations

import torch
from torch import nn

_WHOLE = (nn.Parameter, torch.Tensor)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain_linear(module: nn.Module) -> bool:
    """Whether `module(x)` is `x @ weight.T + bias` and nothing else.

    Not so for: any subclass or wrapper (PEFT's layers, quantised layers, `torch.nn.utils.parametrize`, FSDP2's sharded
    modules), hooks (old-style weight norm, tensor parallelism), a `forward` replaced on the instance (accelerate's
    offloading), weights of another tensor class (torchao, DTensor), and weights that are not whole here (ZeRO-3).
    """
    if type(module) is not nn.Linear or "forward" in module.__dict__ or any(getattr(module, name) for name in _HOOKS):
        return False
    weight, bias = module.weight, module.bias
    return (
        type(weight) in _WHOLE
        and (bias is None or type(bias) in _WHOLE)
        and weight.is_floating_point()
        and tuple(weight.shape) == (module.out_features, module.in_features)
    )
