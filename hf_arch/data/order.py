"""Which rows a step sees: a pure function of (seed, step), whatever the number of processes.

Sample p of a run (p = step * global_batch_size + slot) belongs to epoch e = p // n and takes row P_(seed,e)(p mod n),
where P is a keyed bijection of {0..n-1}: an eight-round Feistel network on the smallest even number of bits that holds
n, walked on until it lands below n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). So nothing is
stored, any step is reached in O(1), and no row comes twice in an epoch. Batches run on across the border of an epoch.

Resume needs no state but the step, and another number of processes sees the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_ROUNDS = 8
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: a fixed bijection of uint64 that spreads every input bit over the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _key(seed: int, epochs: np.ndarray) -> np.ndarray:
    return _mix(_mix(np.full_like(epochs, (seed + 1) * _GOLDEN & _MASK)) ^ _mix(epochs + np.uint64(1)))


def permute(positions: np.ndarray, size: int, seed: int, epochs: np.ndarray) -> np.ndarray:
    """Places of positions in [0, size) in the permutation of (seed, epoch); int64 arrays [N]."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    values = positions.astype(np.uint64)
    keys = _key(seed, epochs.astype(np.uint64))
    walking = np.arange(values.size)
    while walking.size:
        block, key = values[walking], keys[walking]
        left, right = block >> half, block & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(right + key + np.uint64(turn * _GOLDEN & _MASK)) & mask)
        values[walking] = (left << half) | right
        walking = walking[values[walking] >= size]
    return values.astype(np.int64)


class SeededOrder:
    """An endless order of the rows of one dataset; every epoch is a fresh permutation.

    Args:
        num_rows: rows of the dataset, at least 1.
        seed: which order.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows: {num_rows} is too small; allowed: at least 1")
        self.num_rows = num_rows
        self.seed = seed

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers of the samples at int64 `positions` (counted from the start of the run), both [N]."""
        positions = np.asarray(positions, dtype=np.int64)
        return permute(positions % self.num_rows, self.num_rows, self.seed, positions // self.num_rows)

    def indices(self, step: int, global_batch_size: int) -> list[int]:
        """The rows of optimiser step `step` (from 0), over all processes and accumulation steps together."""
        start = step * global_batch_size
        return self.rows(np.arange(start, start + global_batch_size)).tolist()


class MixtureOrder(SeededOrder):
    """Rows of several datasets, concatenated, drawn in fixed proportions; a pure function of (seed, step) as well.

    Every block of `block` samples holds each source the same number of times (the weights, rounded by largest
    remainder), in an order that changes from block to block. So the count of earlier draws of a source, which gives the
    position in that source's own order, is known without walking the run.

    Args:
        sizes: rows of each dataset.
        weights: positive weight of each dataset, of any sum.
        seed: which order.
        block: samples in which the proportions hold exactly; the weights are resolved to 1/block.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, block: int = 1024) -> None:
        super().__init__(sum(sizes), seed)
        self.block = block
        shares = np.asarray(weights, dtype=np.float64) / sum(weights) * block
        counts = np.floor(shares).astype(np.int64)
        by_remainder = np.argsort(counts - shares, kind="stable")
        counts[by_remainder[: block - counts.sum()]] += 1
        if counts.min() == 0:
            raise ValueError(f"weights: {list(weights)} contain a share below 1/{block}, which would never be drawn")
        self._slots = np.repeat(np.arange(len(sizes)), counts)
        self._counts = counts
        self._offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        # A seed of its own for each source and for the shuffling of blocks, or their permutations would be related.
        self._sources = [SeededOrder(size, seed * 1_000_003 + 17 * number + 1) for number, size in enumerate(sizes)]

    def rows(self, positions: np.ndarray) -> np.ndarray:
        positions = np.asarray(positions, dtype=np.int64)
        rows = np.empty_like(positions)
        within = np.arange(self.block)
        blocks = positions // self.block
        for number in np.unique(blocks):
            shuffled = self._slots[permute(within, self.block, self.seed, np.full_like(within, number))]
            chosen = blocks == number
            slots = positions[chosen] % self.block
            for source, order in enumerate(self._sources):
                earlier = np.cumsum(shuffled == source) - 1
                mine = shuffled[slots] == source
                drawn = number * self._counts[source] + earlier[slots[mine]]
                rows[np.flatnonzero(chosen)[mine]] = self._offsets[source] + order.rows(drawn)
        return rows


class SeededSampler(Sampler[int]):
    """The samples of a run one by one, for a DataLoader or Trainer that cuts batches and shares them out itself.

    Accelerate gives consecutive batches to consecutive processes, so step s still gets the samples
    [s * G, (s + 1) * G) for every number of processes with the same global batch size G.

    Args:
        order: the order to follow.
        num_samples: samples of the whole run: steps * G.
        start: first sample to give; a run resumed at step s starts at s * G, without walking there.
    """

    def __init__(self, order: SeededOrder, num_samples: int, start: int = 0) -> None:
        self.order = order
        self.num_samples = num_samples
        self.start = start

    def __iter__(self) -> Iterator[int]:
        for begin in range(self.start, self.num_samples, 4096):
            yield from self.order.rows(np.arange(begin, min(begin + 4096, self.num_samples))).tolist()

    def __len__(self) -> int:
        return max(0, self.num_samples - self.start)


class SeededBatchSampler(Sampler[list[int]]):
    """One process's share of each step, for a bare DataLoader (`batch_sampler=`): a slice of the global batch.

    Args:
        order: the order to follow.
        global_batch_size: samples a step, over all processes; a multiple of `world_size`.
        steps: steps of the whole run.
        start_step: first step to give.
        rank, world_size: which process of how many.
    """

    def __init__(
        self,
        order: SeededOrder,
        global_batch_size: int,
        steps: int,
        *,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if global_batch_size % world_size:
            raise ValueError(f"global_batch_size: {global_batch_size} is not a multiple of world_size {world_size}")
        self.order = order
        self.global_batch_size = global_batch_size
        self.steps = steps
        self.start_step = start_step
        self.share = global_batch_size // world_size
        self.rank = rank

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.steps):
            start = step * self.global_batch_size + self.rank * self.share
            yield self.order.rows(np.arange(start, start + self.share)).tolist()

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)
