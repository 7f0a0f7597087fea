"""Functions as operators: what a compiler is told of them (schema, shapes, strides) is so, and results stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_arch.ops.custom_op import NAMESPACE
from tests.ops.cases import CASES, B
from tests.ops.recurrences import assert_close, random_segments, with_gradients

OWN = ("hgrn", "mamba")  # operators of their own, checked beside their loops


class Calls(TorchDispatchMode):
    """Collects the calls of our operators, their arguments cut off from autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE:
            self.made.append((func, torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, args)))
        return func(*args, **(kwargs or {}))


@pytest.mark.sampled(10)
@pytest.mark.parametrize(("length", "packed"), [(64, False), (75, True)], ids=["row", "documents"])
@pytest.mark.parametrize("name", [name for name in CASES if name not in OWN])
def test_operators_give_the_same(name: str, length: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")  # which is what an operator runs; a C kernel is another form
    case = CASES[name]
    inputs, state = case.inputs(length, "mild"), case.state()
    options = {"initial_state": state[0] if len(state) == 1 else state}
    if packed:
        options["segment_ids"] = random_segments(B, length)
    expected = with_gradients(case.op, inputs, **options)
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    with Calls() as calls:
        assert_close(with_gradients(case.op, inputs, **options), expected, 1e-6)
    assert {str(func).removesuffix(".default").endswith("_backward") for func, _ in calls.made} == {False, True}
    for func, arguments in calls.made:
        torch.library.opcheck(func, arguments, test_utils=("test_schema", "test_faketensor"))
