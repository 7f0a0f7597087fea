"""Every private name of torch that ops and layers touch: whether torch.func, forward-mode differentiation or an
exporter is at work around a call.

`tests/test_compat.py` says of each name what rests on it.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.autograd import forward_ad

_ONNX_FLAGS = "torch.onnx._internal.exporter._flags"


def transformed() -> bool:
    """Whether torch.func (vmap, grad, jvp, ...) or forward-mode differentiation is at work, which a Function with a
    gradient worked out by hand does not follow."""
    return functorch_levels() > 0 or forward_mode()


def functorch_levels() -> int:
    """How many transformations of torch.func enclose this call; 0 in a graph that is being compiled."""
    if torch.compiler.is_compiling():
        return 0
    # No public name says so; a test calls it under each of them.
    stack = torch._C._functorch.get_interpreter_stack()
    return 0 if stack is None else len(stack)


def forward_mode() -> bool:
    """Whether tensors may carry tangents."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def watched() -> bool:
    """Whether a compiler, a tracer, a transformation or a mode sees the operations of this call, so that none may
    depend on a value; every exporter is one of these."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.get_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


def watches_modules() -> bool:
    """Whether somebody listens to the calls of all modules, as counters of FLOPs do."""
    hooks = torch.nn.modules.module
    return bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks)


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether somebody listens to the calls of this module, or has replaced what it does."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in module.__dict__


def parameter_of(module: torch.nn.Module, name: str) -> Any:
    """`getattr(module, name, None)`, which for parameters goes through Python and takes several times as long."""
    held = module._parameters
    return held[name] if name in held else getattr(module, name, None)


def exporting_to_onnx() -> bool:
    """Whether torch.onnx traces this call."""
    # Who exports has imported the exporter, which takes a quarter of a second; the public question does it too.
    flags = sys.modules.get(_ONNX_FLAGS)
    # That question alone is answered no, unasked, where the exporter's last try goes through a compiler.
    return flags is not None and (torch.onnx.is_in_onnx_export() or flags._is_onnx_exporting)
