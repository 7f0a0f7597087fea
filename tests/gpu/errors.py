"""How far results on a device may be from those of the CPU in fp32."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.recurrences import leaves

FLOOR = 1e-2
"""Root mean square under which a tensor's errors count as if it were that large: inputs are of order one."""


def relative_error(actual: torch.Tensor, expected: torch.Tensor, floor: float = FLOOR) -> float:
    """The root mean square of the difference over that of `expected` (`floor` at least); inf for what is not finite."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    if not actual.isfinite().all():
        return float("inf")
    return ((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(floor)).item()


def worst_error(actual: Any, expected: Any) -> float:
    """The largest `relative_error` of pairs of tensors in nested tuples (None left out)."""
    pairs = list(zip(leaves(actual), leaves(expected), strict=True))
    assert pairs
    return max(relative_error(*pair) for pair in pairs)


def require_close(name: str, actual: Any, expected: Any, tolerance: float, floor: float = FLOOR) -> float:
    """The worst error; an AssertionError that names the tensor where one is above the tolerance."""
    pairs = list(zip(leaves(actual), leaves(expected), strict=True))
    errors = [relative_error(*pair, floor) for pair in pairs]
    for index, error in enumerate(errors):
        assert error <= tolerance, f"{name}, tensor {index} of {len(errors)}: error {error:.2e} > {tolerance:.0e}"
    return max(errors)


def on_device(tree: Any, device: torch.device, rounded: torch.dtype | None = None) -> Any:
    """Tensors of nested tuples and lists moved; those exact in `rounded` (data, not decays) cast to it as well."""
    if isinstance(tree, torch.Tensor):
        if rounded is not None and tree.dim() > 2 and tree.is_floating_point():
            cast = tree.to(rounded)
            tree = cast if torch.equal(cast.to(tree.dtype), tree) else tree
        return tree.to(device)
    if isinstance(tree, (tuple, list)):
        return type(tree)(on_device(branch, device, rounded) for branch in tree)
    return tree
