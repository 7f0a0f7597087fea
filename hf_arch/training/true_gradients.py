"""Whether what the optimiser is given is the gradient of the loss: a custom `autograd.Function` may give back anything.

For all parameters of one place (layers as *) with the gradient g, along v = g / |g|, in training mode and with the same
random numbers:

    ratio = (L(w + s v) - L(w - s v)) / (2 s |g|)

is 1 where g is the gradient, 0.1 where it was multiplied by ten, more than 1 where it was clipped. A ratio far from 1
counts where a quarter of the step gives it too: of a loss with jumps (quantised weights) nothing is said.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

FAR = 2.0
"""Times too large or too small."""
_AGREE = 1.4
_CHANGE = 0.02
"""Of the loss, in nats, that a step should make if the gradient is right."""
_STEP = 0.01
"""The longest step, against the length of the weights."""
_SEEN = 5e-4
"""A change of the loss that is no rounding."""


def untrue_gradients(model: nn.Module, row: Tensor) -> dict[str, list[float]]:
    """{place: [ratio, numbers]} of the parameters whose gradient is not that of the next-token loss of row [1, T].
    Modes and random numbers are for the caller to restore."""
    model.train()
    places: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype == torch.float32:
            places.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(parameter)
    parameters = [parameter for group in places.values() for parameter in group]
    if not parameters or row.shape[1] < 2:
        return {}
    with torch.enable_grad():
        found = torch.autograd.grad(_loss(model, row), parameters, allow_unused=True)
    gradients = dict(zip(map(id, parameters), found, strict=True))
    wrong = {}
    for place, group in places.items():
        known = [(one, grad) for one in group if (grad := gradients[id(one)]) is not None]
        ratio = _ratio(model, row, known)
        if ratio is not None and not 1 / FAR < ratio < FAR:
            wrong[place] = [ratio, float(sum(one.numel() for one, _ in known))]
    return wrong


def _ratio(model: nn.Module, row: Tensor, group: list[tuple[nn.Parameter, Tensor]]) -> float | None:
    """None where the loss does not say."""
    length = _norm([grad for _, grad in group]) if group else 0.0
    if length == 0.0:
        return None
    longest = _STEP * _norm([one for one, _ in group]) or _CHANGE / length
    step = min(_CHANGE / length, longest)
    ratio, change = _slope(model, row, group, length, step)
    if max(abs(change), 2 * step * length) < _SEEN:
        return None
    if 1 / FAR < ratio < FAR:
        return ratio
    again, _ = _slope(model, row, group, length, step / 4)
    return ratio if ratio * again > 0 and 1 / _AGREE < again / ratio < _AGREE else None


@torch.no_grad()
def _slope(
    model: nn.Module, row: Tensor, group: list[tuple[nn.Parameter, Tensor]], length: float, step: float
) -> tuple[float, float]:
    kept = [one.detach().clone() for one, _ in group]
    losses = []
    try:
        for sign in (1.0, -1.0):
            for (one, grad), was in zip(group, kept, strict=True):
                one.copy_(was.add(grad, alpha=sign * step / length))
            losses.append(float(_loss(model, row)))
    finally:  # an interrupt must not leave the trained weights moved
        for (one, _), was in zip(group, kept, strict=True):
            one.copy_(was)
    change = losses[0] - losses[1]
    return change / (2 * step * length), change


def _loss(model: nn.Module, row: Tensor) -> Tensor:
    torch.manual_seed(0)
    logits: Tensor = model(input_ids=row, use_cache=False).logits
    return nn.functional.cross_entropy(logits[0, :-1].float(), row[0, 1:])


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.detach().double().square().sum() for tensor in tensors]).sum().sqrt())
