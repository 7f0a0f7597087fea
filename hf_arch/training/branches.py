"""The size of what each sublayer writes next to the residual stream that it writes to, measured and made equal.

At initialisation the ratio rms(written) / rms(stream) of a mixer or feed-forward moves the loss of small models as much
as the choice of the mixer does. What is written is how far the stream's first tensor moves: after post-norms, factors
and whatever the stream does with the output. Where a layer runs several times its first run counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_arch.core.errors import ConfigError
from hf_arch.models.branch_scales import LARGEST, SITES

Ratios = list[dict[str, float]]
"""For each layer, the ratio of each of its sublayers; none where the stream was zero."""


def measure_branches(model: nn.Module, ids: Tensor) -> Ratios:
    """The ratio of every sublayer over the tokens ids [B, T], in evaluation mode."""
    with undisturbed(model), watched(model) as found:
        model(ids, use_cache=False)
    return found


def solve_branches(model: nn.Module, ids: Tensor, targets: Ratios) -> list[list[float]]:
    """Factors for `branch_scales` that bring every ratio of `model` to that of `targets`, in one forward pass: a layer
    is solved on the stream that the solved layers before it make.

    Raises `ConfigError` where a sublayer writes nothing but zeros, or the layers are not as many.
    """
    layers = model_layers(model)
    if len(layers) != len(targets):
        raise ConfigError(f"branch_scales: {len(layers)} layers cannot be given the scales of {len(targets)}")
    solved = [[1.0, 1.0] for _ in layers]

    def solve(layer: int, site: str, ratio: float) -> float:
        target = targets[layer].get(site)
        if target is None:
            return 1.0
        factor = float(f"{target / ratio:.4g}") if ratio > 0 else math.inf
        if not 0 < factor <= LARGEST:
            raise ConfigError(f"branch_scales: the {site} of layer {layer} writes {ratio:.1e} of its stream")
        solved[layer][SITES.index(site)] = factor
        return factor

    with undisturbed(model), watched(model, solve):
        model(ids, use_cache=False)
    return solved


def largest_gap(first: Ratios, second: Ratios) -> float:
    """The largest factor between two models' ratios at the same layer and site; infinite where layers differ in number
    or one of them writes nothing."""
    if len(first) != len(second):
        return math.inf
    gap = 1.0
    for one, other in zip(first, second, strict=True):
        for site in set(one) & set(other):
            low, high = sorted((one[site], other[site]))
            gap = max(gap, high / low if low > 0 else (math.inf if high > 0 else 1.0))
    return gap


def model_layers(model: nn.Module) -> Any:
    """The blocks of a causal LM of ours."""
    return model.get_submodule(getattr(model, "base_model_prefix", "model")).layers


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """No gradients, evaluation mode, and afterwards modes and random numbers as they were."""
    device = next(model.parameters()).device
    training = {module: module.training for module in model.modules()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, was in training.items():
                module.training = was


@contextmanager
def watched(model: nn.Module, factor: Callable[[int, str, float], float] | None = None) -> Iterator[Ratios]:
    """The ratios of the forward passes within it. With `factor(layer, site, ratio)` each output is multiplied by it."""
    found: Ratios = [{} for _ in model_layers(model)]
    factors: dict[tuple[int, str], float] = {}

    def hook(index: int) -> Callable[..., Any]:
        def written(stream: Any, arguments: tuple[Any, ...], state: Any) -> Any:
            if arguments[0] != "write":
                return None
            _, before, out, site = arguments
            key = (index, site)
            if key not in factors:
                ratio = _ratio(before[0], state[0])
                if ratio is not None:
                    found[index][site] = ratio
                factors[key] = 1.0 if factor is None or ratio is None else factor(index, site, ratio)
            return None if factors[key] == 1.0 else stream.write(before, out * factors[key], site)

        return written

    handles = [layer.stream.register_forward_hook(hook(index)) for index, layer in enumerate(model_layers(model))]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _ratio(before: Tensor, after: Tensor) -> float | None:
    stream = _rms(before)
    return _rms(after - before) / stream if stream > 0 else None


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())
