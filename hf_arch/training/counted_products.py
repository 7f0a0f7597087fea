"""The matrix products of a model as torch counts them, against the FLOPs that its parts say of themselves.

A form in chunks multiplies more than the recurrence that it computes, which is what a cost counts: that a row takes
more products than its cost is no error. Where its tokens one at a time do so too, no form is as cheap as the cost says:

    products           of a row, over its cost
    least_products     the smaller of that and the same of its tokens one at a time; or of both the fewer products over
                       the cost of the row, where that is more. None where a part takes no single tokens
    training_products  of a forward and a backward pass in training mode, over three forward passes: what a cost takes
                       training to be
    scoring_products   of a row in evaluation mode, over the same in training mode: more than 1 where a score is given
                       work that training was not
    most_work          of a row with all its elementwise work, two FLOPs for each number of the largest tensor of an
                       operation, over its cost: below 1 where a cost says more than is done, however it counts

Elementwise work, and what runs outside torch's operators, the counter cannot see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from hf_arch.layers.compat import attention_implementation, experts_implementation, set_experts_implementation
from hf_arch.models.cost import ModelCost, model_cost
from hf_arch.training.branches import undisturbed
from hf_arch.training.compat import TorchDispatchMode, tree_leaves

STEPS_ABOVE = 1.05
"""Times its cost: a row of no more products needs no second count."""
CONTEXTS = 4
"""Quarters of a row at whose ends one token is counted."""
_SAME = 0.05
"""Of the rms of logits, what a row and its tokens one at a time differ by: beyond it they are two models, and below it
rounding, of bf16 too."""


def counted_products(model: Any, row: Tensor, of_plugins: bool = True) -> dict[str, float | None]:
    """These ratios for row, int64 [1, T].

    Args:
        of_plugins: whether parts take part that no test of this package has held against the counter: only these are
            asked for more than `products` and `least_products`.
    """
    with undisturbed(model), _countable(model):
        cost = model_cost(model.config, row.shape[1])
        said = max(cost.flops_per_token_forward * row.numel(), 1.0)
        whole, logits = _forward(model, row)
        found: dict[str, float | None] = {"products": whole / said, "least_products": None}
        if whole <= STEPS_ABOVE * said:
            found["least_products"] = whole / said
        elif (steps := _one_at_a_time(model, row, logits, cost)) is not None:
            counted, said_of_steps = steps
            alike = min(whole / said, counted / max(said_of_steps, 1.0))
            found["least_products"] = max(alike, min(whole, counted) / said)
        if of_plugins:
            found["most_work"] = (whole if whole >= said else whole + _elementwise(model, row)) / said
            forward, training = _training(model, row)
            found["training_products"] = training / (3 * max(whole, 1.0))
            found["scoring_products"] = whole / max(forward, 1.0)
    return found


def _forward(model: Any, ids: Tensor, **options: Any) -> tuple[float, Tensor]:
    """FLOPs of the products of one call, and its logits."""
    with FlopCounterMode(display=False) as counter:
        logits: Tensor = model(input_ids=ids, **(options or {"use_cache": False})).logits
    return float(counter.get_total_flops()), logits


def _one_at_a_time(model: Any, row: Tensor, logits: Tensor, cost: ModelCost) -> tuple[float, float] | None:
    """FLOPs of the tokens of a row one at a time, counted and as the cost says, from a few of them (the trapezoid
    rule); None where a part takes no single tokens, or computes something else of them."""
    length, counted = row.shape[1], []
    places = [min(length - 1, length * quarter // CONTEXTS) for quarter in range(CONTEXTS + 1)]
    for place in places:
        cache = DynamicCache(config=model.config)
        try:
            if place:
                model(input_ids=row[:, :place], past_key_values=cache)
            flops, found = _forward(model, row[:, place : place + 1], past_key_values=cache)
        except Exception:  # a part of a plugin may raise anything: nothing is said then
            return None
        expected = logits[:, place].float()
        if _rms(found[:, 0].float() - expected) > _SAME * _rms(expected):
            return None
        counted.append(flops)
    said = [cost.decode_flops(place) for place in places]
    return _over_a_row(counted, length), _over_a_row(said, length)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _over_a_row(ends: list[float], length: int) -> float:
    return sum((first + second) / 2 for first, second in pairwise(ends)) * length / (len(ends) - 1)


def _elementwise(model: Any, row: Tensor) -> float:
    """Two FLOPs for each number that an operation of a forward pass takes or gives, whichever are more, views left
    out."""
    with _Handled() as handled:
        model(input_ids=row, use_cache=False)
    return 2.0 * handled.numbers


class _Handled(TorchDispatchMode):
    """Counts the numbers of the largest tensor of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, Tensor)]
            self.numbers += max((one.numel() for one in tensors), default=0)
        return out


def _training(model: Any, row: Tensor) -> tuple[float, float]:
    """FLOPs of the products of a forward pass in training mode, and with its backward pass, without those that
    checkpointing repeats."""
    checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for module in checkpointed:
        module.gradient_checkpointing = False
    model.train()
    try:
        with torch.enable_grad():
            forward, _ = _forward(model, row)
            logits = model(input_ids=row, use_cache=False).logits  # the counter leaves hooks, which `grad` refuses
            loss = nn.functional.cross_entropy(logits[0, :-1].float(), row[0, 1:])
            with FlopCounterMode(display=False) as backward:
                torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        model.eval()
        for module in checkpointed:
            module.gradient_checkpointing = True
    return forward, forward + float(backward.get_total_flops())


@contextmanager
def _countable(model: Any) -> Iterator[None]:
    """Forms of attention and of experts whose products the counter knows."""
    attention, experts = attention_implementation(model.config), experts_implementation(model.config)
    model.set_attn_implementation("eager")
    set_experts_implementation(model.config, "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        set_experts_implementation(model.config, experts)
