"""The names of torch by which code runs on shapes alone and every operation is seen: private, and all in this place.

`tests/test_compat.py` says of each name what rests on it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch._library.custom_ops import OPDEFS
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DataDependentOutputException as DataDependentOutputException
from torch._subclasses.fake_tensor import DynamicOutputShapeException as DynamicOutputShapeException
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_unflatten as tree_unflatten

_Mode = TypeVar("_Mode", bound=type[TorchDispatchMode])

READ_SCALAR = torch.ops.aten._local_scalar_dense.default
"""What `int(tensor)` and `tensor.item()` ask for: a value, which a fake tensor does not have."""

READ_DEVICE = torch.ops.prim.device.default
"""What torch asks a fake tensor for whenever it wants to know where that is: half of all that is dispatched."""

UNSAFE_VIEW = torch.ops.aten._unsafe_view.default
"""Gives a view, which its schema does not say."""

below_dispatch = torch._C._DisableTorchDispatch
"""Within, operations run without any mode."""

GROUPED_PRODUCT = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)
"""None in releases of torch that do not have it (2.6)."""


def grouped_product(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor | None = None, *_: Any) -> torch.Tensor:
    """An empty tensor of the shape of `GROUPED_PRODUCT`, which torch gives for bf16 alone: rows of experts times their
    weights, or the gradient of those."""
    if a.dim() == 2 and b.dim() == 2:
        assert ends is not None
        return a.new_empty(ends.numel(), a.shape[0], b.shape[1])
    rows = a.shape[:-1] if a.dim() == b.dim() or b.dim() == 3 else a.shape[1:2]
    return a.new_empty(*rows, b.shape[-1])


def untraced(mode: _Mode) -> _Mode:
    """A mode without what torch puts around its `__torch_dispatch__` for torch.compile: a tenth of each operation, and
    what runs on fake tensors here is not compiled."""
    setattr(mode, "__torch_dispatch__", getattr(mode.__torch_dispatch__, "__wrapped__", mode.__torch_dispatch__))  # noqa: B010
    return mode


def fake_like(x: torch.Tensor, device: torch.device, attributes: dict[str, Any]) -> FakeTensor:
    """A fake tensor on `device` of a meta tensor, with the attributes that another one had when it was made: a quarter
    of the time of `FakeTensor`."""
    made = torch.Tensor._make_subclass(FakeTensor, x, False, dispatch_device=True, device_for_backend_keys=device)
    torch._C._set_throw_on_mutable_data_ptr(made)
    made.__dict__.update(attributes)
    return made


def inside_custom_op(func: Any) -> Callable[..., Any] | None:
    """The Python function behind a custom op of ours (`torch.library.custom_op`); None for other operations."""
    name = func._schema.name
    definition = OPDEFS.get(name) if name.startswith("hf_arch") else None
    return None if definition is None else definition._init_fn


def makes_results(func: Any) -> bool:
    """Whether an operation is one of torch's or an operator, and writes into nothing that it is given."""
    return isinstance(func, OpOverload) and not func._schema.is_mutable


def written(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation returns that only writes numbers into tensors which it is given: those tensors, as they are.
    None where it makes a tensor, changes a shape, or writes into one whose numbers are known."""
    names = _returned_arguments(func)
    if names is None:
        return None
    found = [args[place] if place < len(args) else kwargs.get(name) for place, name in names]
    for x in found:
        if not isinstance(x, FakeTensor) or x.constant is not None or x.numel() == 0:  # an empty `out` is made to fit
            return None
    return found[0] if len(found) == 1 else tuple(found)


@cache
def _returned_arguments(func: Any) -> list[tuple[int, str]] | None:
    """(place, name) of the arguments that an operation writes and returns; None where it returns anything else."""
    if torch.Tag.inplace_view in func.tags or not func._schema.returns:
        return None
    places = {
        frozenset(argument.alias_info.before_set): (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    wanted = [
        None if one.alias_info is None or not one.alias_info.is_write else frozenset(one.alias_info.before_set)
        for one in func._schema.returns
    ]
    return [places[key] for key in wanted if key] if all(key in places for key in wanted) else None
