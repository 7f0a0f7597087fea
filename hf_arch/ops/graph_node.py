"""A Function whose gradient is worked out by hand, as one node of a compiled graph.

torch.compile would trace through it: every chunk and every level of halving becomes nodes of its own, writes into
slices of buffers become copies of the whole, and each length of the row is a graph of its own. A model of three tiny
layers then compiles for minutes. As an operator it is one node for all lengths, and runs as it does without a compiler.

An operator's results have shapes that the compiler must know, which what a Function saves for its gradient has not: the
gradient runs the forward pass once more. Outside torch.compile the Function itself is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

# The module's own name: a copy of this file elsewhere (a model bundled with its code) registers operators of its own.
NAMESPACE = re.sub(r"\W", "_", __name__)


class _Context(SimpleNamespace):
    """What a Function's forward leaves for its backward, outside autograd."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors


def empty_contiguous(x: Tensor) -> Tensor:
    """Like x, stored in the order of its axes."""
    return x.new_empty(x.shape)


def one_node(
    function: type[torch.autograd.Function],
    outputs: Callable[..., Any],
    gradient: Callable[[Tensor], Tensor] = empty_contiguous,
) -> Callable[..., Any]:
    """`function.apply`, which is one operator to torch.compile.

    Args:
        function: gives a gradient for every input that can want one, and the same results under any context.
        outputs: called with the function's arguments, empty tensors like its outputs; its annotations are the schema.
        gradient: an empty tensor like the gradient of an input.
    """
    schema = torch.library.infer_schema(outputs, mutates_args=())
    name = f"{NAMESPACE}::{function.__name__.strip('_')}"

    @torch.library.custom_op(name, mutates_args=(), schema=schema)
    def forward(*args: Any) -> Any:
        with torch.no_grad():
            return function.forward(_Context(needs_input_grad=(False,) * len(args)), *args)

    def differentiate(grads: Sequence[Tensor], wanted: Sequence[bool], *args: Any) -> list[Tensor]:
        ctx = _Context(needs_input_grad=tuple(wanted))
        with torch.no_grad():
            function.forward(ctx, *args)
            found = function.backward(ctx, *grads)
        found = (found,) if isinstance(found, Tensor) else found
        return [_like(gradient(x), grad) for x, grad, wants in zip(args, found, wanted, strict=True) if wants]

    arguments = schema.rpartition(" -> ")[0].removeprefix("(")
    backward = torch.library.custom_op(
        f"{name}_backward",
        differentiate,
        mutates_args=(),
        schema=f"(Tensor[] grads, bool[] wanted, {arguments} -> Tensor[]",
    )
    forward.register_fake(outputs)

    @backward.register_fake
    def _(grads: Sequence[Tensor], wanted: Sequence[bool], *args: Any) -> list[Tensor]:
        return [gradient(x) for x, wants in zip(args, wanted, strict=True) if wants]

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
        ctx.options = [None if isinstance(x, Tensor) else x for x in inputs]

    def differentiate_node(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [option if x is None else x for x, option in zip(ctx.saved_tensors, ctx.options, strict=True)]
        found = iter(backward(list(grads), list(ctx.needs_input_grad), *inputs))
        return tuple(next(found) if wants else None for wants in ctx.needs_input_grad)

    forward.register_autograd(differentiate_node, setup_context=save)

    def apply(*args: Any) -> Any:
        return forward(*args) if torch.compiler.is_dynamo_compiling() else function.apply(*args)

    return apply


def _like(empty: Tensor, x: Tensor) -> Tensor:
    """x in the layout and dtype of `empty`."""
    return x if (x.stride(), x.dtype) == (empty.stride(), empty.dtype) else empty.copy_(x)
