"""The names of torch by which code runs on shapes alone and every operation is seen: private, and all in this place.

`tests/test_compat.py` says of each name what rests on it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import DataDependentOutputException as DataDependentOutputException
from torch._subclasses.fake_tensor import DynamicOutputShapeException as DynamicOutputShapeException
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves

READ_SCALAR = torch.ops.aten._local_scalar_dense.default
"""What `int(tensor)` and `tensor.item()` ask for: a value, which a fake tensor does not have."""

GROUPED_PRODUCT = torch.ops.aten._grouped_mm.default


def grouped_product(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor | None = None, *_: Any) -> torch.Tensor:
    """An empty tensor of the shape of `GROUPED_PRODUCT`, which torch gives for bf16 alone: rows of experts times their
    weights, or the gradient of those."""
    if a.dim() == 2 and b.dim() == 2:
        assert ends is not None
        return a.new_empty(ends.numel(), a.shape[0], b.shape[1])
    rows = a.shape[:-1] if a.dim() == b.dim() or b.dim() == 3 else a.shape[1:2]
    return a.new_empty(*rows, b.shape[-1])


def inside_custom_op(func: Any) -> Callable[..., Any] | None:
    """The Python function behind a custom op of ours (`torch.library.custom_op`); None for other operations."""
    name = func._schema.name
    definition = OPDEFS.get(name) if name.startswith("hf_arch") else None
    return None if definition is None else definition._init_fn
