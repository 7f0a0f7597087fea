"""Tiny models of every registered architecture, for the checks that hold for all of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import hf_arch
from hf_arch import perturbed
from hf_arch.perturbed import PerturbedModels

ARCHITECTURES = hf_arch.list_architectures()
ONE_OF_EACH_KIND = ("llama", "gpt2", "mla", "moe", "gla", "mamba2", "gated_delta_net", "rwkv7", "hgrn", "mixed")
"""For the fast suite where all of them would take minutes."""
FEW = ("llama", "gla", "mixed")
"""For the fast suite where a case takes seconds, as under a compiler; CI runs the rest of `ONE_OF_EACH_KIND`."""
# Grouping tokens by expert makes the rounding of earlier outputs depend on later tokens.
ROUNDING_MOVES = {"moe"}


def perturbed_model(name: str, seed: int = 0, **overrides: Any) -> Any:
    """A tiny model in eval mode, every parameter moved off its initial value so that each one shows in the logits."""
    if any(not isinstance(value, (bool, int, float)) for value in overrides.values()):
        return perturbed.perturbed_model(hf_arch.tiny_config(name, **overrides), seed)  # parts that a test may own
    return _models(name, seed, tuple(sorted(overrides.items()))).copied()


@lru_cache(maxsize=128)
def _models(name: str, seed: int, overrides: tuple[tuple[str, Any], ...]) -> PerturbedModels:
    return PerturbedModels(hf_arch.tiny_config(name, **dict(overrides)), seed)


def token_ids(batch: int = 2, length: int = 21, seed: int = 3) -> Tensor:
    """[batch, length] random tokens without the padding token."""
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Within `tolerance` of the largest expected entry (fp32 chunk form; logits here are of order 1)."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))
