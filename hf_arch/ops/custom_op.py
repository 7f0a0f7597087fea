"""Functions whose backward is written by hand: what their gradient promises, and how a compiler sees them.

torch.compile would trace through such a Function: every chunk and every level of halving becomes nodes of its own,
writes into slices of buffers become copies of the whole, and each length of the row is a graph of its own. A model of
three tiny layers then compiles for minutes. As a custom operator it is one node for all lengths, and runs as it does
without a compiler.

An operator's results have shapes that the compiler must know, which what a Function saves for its gradient has not: the
gradient runs the forward pass once more. Outside torch.compile the Function itself is called.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import wraps
from types import SimpleNamespace
from typing import Any, get_type_hints

import torch
from torch import Tensor

from .compat import transformed
from .precision import without_autocast

# The module's own name: a copy of this file elsewhere (a model bundled with its code) registers operators of its own.
NAMESPACE = re.sub(r"\W", "_", __name__)


class _Context(SimpleNamespace):
    """What a Function's forward leaves for its backward, outside autograd."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors


def empty_contiguous(x: Tensor) -> Tensor:
    """Like x, stored in the order of its axes."""
    return x.new_empty(x.shape)


def manual_backward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates the `backward` of a Function whose gradient is written by hand: products keep their dtype where a
    caller leaves autocast on around `loss.backward()`, and a second derivative is an error, not a wrong number.
    """

    @wraps(backward)
    def once(ctx: Any, *grads: Tensor) -> Any:
        # torch's `once_differentiable` puts its error where `torch.autograd.grad` does not look.
        if torch.is_grad_enabled():
            raise RuntimeError(f"{type(ctx).__name__} has no second derivative: create_graph=True is not allowed")
        with without_autocast(next(grad for grad in grads if grad is not None)):
            return backward(ctx, *grads)

    return once


def as_custom_op(
    function: type[torch.autograd.Function],
    outputs: tuple[str, ...] | Callable[..., Any],
    empty: Callable[[Tensor], Tensor] = empty_contiguous,
) -> Callable[..., Any]:
    """`function.apply`, which is one operator to torch.compile. Its schema is the signature of `function.forward`.

    Args:
        function: gives a gradient for every input that can want one, and the same results under any context.
        outputs: for each output the name of the argument it is like, in shape, dtype and device; or a function of the
            arguments that makes empty tensors like the outputs.
        empty: an empty tensor in the layout that an output, or the gradient of an input, has.
    """
    schema, parameters = _schema_of(function.forward)
    name = f"{NAMESPACE}::{function.__name__.strip('_')}"

    def empty_outputs(*args: Any) -> Any:
        if callable(outputs):
            return outputs(*args)
        found = tuple(empty(args[parameters.index(output)]) for output in outputs)
        return found[0] if len(found) == 1 else found

    @torch.library.custom_op(name, mutates_args=(), schema=schema)
    def forward(*args: Any) -> Any:
        with torch.no_grad():
            return function.forward(_Context(needs_input_grad=(False,) * len(args)), *args)

    forward.register_fake(empty_outputs)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
        ctx.options = [None if isinstance(x, Tensor) else x for x in inputs]

    forward.register_autograd(_gradient_of(function, name, schema, empty), setup_context=save)

    def apply(*args: Any) -> Any:
        # torch.export too (the second): inlined, the forward pass would have no gradient and refuse to run with one.
        if torch.compiler.is_dynamo_compiling() or torch.compiler.is_compiling():
            return forward(*args)
        if transformed():
            name = function.__name__.strip("_")
            raise RuntimeError(
                f"{name}: its gradient is worked out by hand, which torch.func and "
                "forward-mode derivatives do not follow; take first derivatives by loss.backward() or autograd.grad"
            )
        return function.apply(*args)

    apply.__doc__ = function.__doc__
    return apply


def _gradient_of(
    function: type[torch.autograd.Function], name: str, schema: str, empty: Callable[[Tensor], Tensor]
) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward of the operator `name`, which is an operator itself: it runs `function` again for what its
    `backward` needs. Arguments as in `as_custom_op`."""

    def differentiate(grads: Sequence[Tensor], wanted: Sequence[bool], *args: Any) -> list[Tensor]:
        ctx = _Context(needs_input_grad=tuple(wanted))
        with torch.no_grad():
            function.forward(ctx, *args)
            found = function.backward(ctx, *grads)
        found = (found,) if isinstance(found, Tensor) else found
        return [_like(empty(x), grad) for x, grad, wants in zip(args, found, wanted, strict=True) if wants]

    arguments = schema.rpartition(" -> ")[0].removeprefix("(")
    backward = torch.library.custom_op(
        f"{name}_backward",
        differentiate,
        mutates_args=(),
        schema=f"(Tensor[] grads, bool[] wanted, {arguments} -> Tensor[]",
    )

    @backward.register_fake
    def _(grads: Sequence[Tensor], wanted: Sequence[bool], *args: Any) -> list[Tensor]:
        return [empty(x) for x, wants in zip(args, wanted, strict=True) if wants]

    def differentiate_node(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [option if x is None else x for x, option in zip(ctx.saved_tensors, ctx.options, strict=True)]
        found = iter(backward(list(grads), list(ctx.needs_input_grad), *inputs))
        return tuple(next(found) if wants else None for wants in ctx.needs_input_grad)

    return differentiate_node


def _schema_of(forward: Callable[..., Any]) -> tuple[str, list[str]]:
    """The schema of an operator with the arguments of a Function's `forward`, and their names."""
    hints = get_type_hints(forward)
    names = list(inspect.signature(forward).parameters)[1:]

    def prototype(*args: Any) -> Any: ...

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=hints[name]) for name in names]
    prototype.__signature__ = inspect.Signature(parameters, return_annotation=hints["return"])  # type: ignore[attr-defined]
    return torch.library.infer_schema(prototype, mutates_args=()), names


def _like(empty: Tensor, x: Tensor) -> Tensor:
    """x in the layout and dtype of `empty`."""
    return x if (x.stride(), x.dtype) == (empty.stride(), empty.dtype) else empty.copy_(x)
