"""`ArchConfig.branch_scales`: one factor for what each layer's mixer and feed-forward write to the residual stream.

A control of comparisons, not a feature of an architecture: `hf_arch.training.branches` measures and solves them.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import ConfigError

SITES = ("mixer", "ffn")
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
