"""The size of what each sublayer writes next to the residual stream that it writes to, measured and made equal.

At initialisation the ratio rms(f(x)) / rms(x) of a mixer or FFN f moves the loss of small models as much as the choice
of the mixer does. `measure_branches` reads it off a model; `solve_branches` finds one factor a sublayer that brings it
to the ratio of another model, for `ArchConfig.branch_scales`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError

SITES = ("mixer", "ffn")
Ratios = list[dict[str, float]]
"""For each layer, the ratio of each of its sublayers."""
LARGEST = 1e6


def check_branch_scales(scales: Any, layers: int) -> None:
    """Raises `ConfigError` unless `scales` is None or one [mixer, FFN] of numbers above 0 for each layer."""
    if scales is None:
        return
    if len(scales) != layers or any(not isinstance(pair, list) or len(pair) != len(SITES) for pair in scales):
        raise ConfigError(f"branch_scales: expected one [mixer, FFN] for each of {layers} layers, got {scales!r}")
    for pair in scales:
        for value in pair:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LARGEST:
                raise ConfigError(f"branch_scales: {value!r} is not allowed; use numbers above 0, at most {LARGEST:g}")


def measure_branches(model: nn.Module, ids: Tensor) -> Ratios:
    """rms of what each sublayer writes (after its post-norm and factors) over rms of the stream that it is written to,
    over the tokens ids [B, T], in eval mode."""
    found: Ratios = [{} for _ in _layers(model)]

    def record(layer: int, site: str, ratio: float) -> float:
        found[layer][site] = ratio
        return 1.0

    _run(model, ids, record)
    return found


def solve_branches(model: nn.Module, ids: Tensor, targets: Ratios) -> list[list[float]]:
    """Factors for `branch_scales` that bring every ratio of `model` to that of `targets`, in one forward pass: a layer
    is solved on the stream that the solved layers before it make.

    Raises `ConfigError` where a sublayer writes nothing but zeros, or the layers are not as many.
    """
    layers = _layers(model)
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

    _run(model, ids, solve)
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


def _layers(model: nn.Module) -> Any:
    return model.get_submodule(getattr(model, "base_model_prefix", "model")).layers  # type: ignore[union-attr]


@torch.no_grad()
def _run(model: nn.Module, ids: Tensor, at: Callable[[int, str, float], float]) -> None:
    """One forward pass; `at` is called with layer, site and ratio of each write, which is multiplied by its result."""

    def hook(layer: int) -> Callable[..., Any]:
        def before(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if arguments[0] != "write":
                return None
            method, state, out, site = arguments
            factor = at(layer, site, _rms(out) / max(_rms(state[0]), 1e-30))
            return None if factor == 1.0 else (method, state, out * factor, site)

        return before

    handles = [layer.stream.register_forward_pre_hook(hook(index)) for index, layer in enumerate(_layers(model))]
    was_training = model.training
    try:
        model.eval()(ids, use_cache=False)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()


def _rms(x: Tensor) -> float:
    return float(x.float().pow(2).mean().sqrt())
