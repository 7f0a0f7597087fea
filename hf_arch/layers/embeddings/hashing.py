"""Hashes of token ids for embedding tables, in wrapping 64-bit integers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(value: int) -> int:
    """The generator of Steele et al. 2014: one mixed 64-bit integer."""
    value = (value + GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def multipliers(seed: int, slot: int, count: int, vocab_size: int) -> list[int]:
    """`count` odd multipliers below 2^63, so that products with ids of the vocabulary wrap rarely."""
    bound = max(1, ((1 << 63) - 1) // vocab_size // 2)
    return [
        2 * (splitmix64((seed + 10007 * slot + GOLDEN * (index + 1)) & _MASK) % bound) + 1 for index in range(count)
    ]


def primes_from(start: int) -> Iterator[int]:
    """The primes of at least `start`."""
    candidate = max(2, start)
    while True:
        if all(candidate % factor for factor in range(2, int(candidate**0.5) + 1)):
            yield candidate
        candidate += 1


def ngram_keys(recent: Tensor, factors: list[int]) -> Tensor:
    """[B, T, N] int64: for n = 1..N the xor over s < n of id_{t-s} times its factor.

    Args:
        recent: [B, T, N], each token's id and those before it.
    """
    key = recent[..., 0] * factors[0]
    keys = [key]
    for lag, factor in enumerate(factors[1:], 1):
        key = torch.bitwise_xor(key, recent[..., lag] * factor)
        keys.append(key)
    return torch.stack(keys, -1)
