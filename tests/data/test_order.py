"""The order of rows is a pure function of (seed, step)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from hf_arch.data import MixtureOrder, SeededBatchSampler, SeededOrder, SeededSampler


@settings(max_examples=60, deadline=None)
@given(num_rows=st.integers(1, 5000), seed=st.integers(0, 2**40), epoch=st.integers(0, 2**20))
def test_every_epoch_is_a_permutation(num_rows: int, seed: int, epoch: int):
    rows = SeededOrder(num_rows, seed).rows(np.arange(epoch * num_rows, (epoch + 1) * num_rows))
    assert sorted(rows.tolist()) == list(range(num_rows))


def test_epochs_and_seeds_give_different_permutations():
    orders = [SeededOrder(200, seed).rows(np.arange(600)).reshape(3, 200) for seed in range(4)]
    assert len({tuple(epoch) for order in orders for epoch in order}) == 12


def test_rows_are_spread_evenly_over_positions():
    # Each of 8 rows should stand first in about one of 8 seeds: chi-square, 7 degrees of freedom, p = 1e-4.
    first = Counter(SeededOrder(8, seed).indices(0, 1)[0] for seed in range(4000))
    assert sum((first[row] - 500) ** 2 / 500 for row in range(8)) < 29.9


def test_neighbours_do_not_stay_neighbours():
    rows = SeededOrder(10_000, 1).rows(np.arange(10_000))
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.05
    assert np.mean(np.abs(np.diff(rows)) == 1) < 0.002


def test_a_far_step_needs_no_walk():
    order = SeededOrder(10**12, 3)
    assert order.indices(10**15, 4) == SeededOrder(10**12, 3).indices(10**15, 4)


def test_steps_join_to_one_sequence_across_epochs():
    order = SeededOrder(10, 0)
    joined = [row for step in range(10) for row in order.indices(step, 4)]
    assert joined == order.rows(np.arange(40)).tolist()
    assert Counter(joined) == dict.fromkeys(range(10), 4)


@pytest.mark.parametrize("order", [SeededOrder(37, 5), MixtureOrder([20, 9, 40], [1, 2, 3], 5)])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_step_sees_the_same_rows_whatever_the_number_of_processes(order: SeededOrder, world_size: int):
    samplers = [SeededBatchSampler(order, 8, 12, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, shares in enumerate(zip(*samplers, strict=True)):
        assert Counter(row for share in shares for row in share) == Counter(order.indices(step, 8))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_accelerate_shares_out_the_same_rows(world_size: int):
    from accelerate.data_loader import BatchSamplerShard

    order = SeededOrder(37, 5)
    batches = [
        list(BatchSamplerShard(BatchSampler(SeededSampler(order, 96), 8 // world_size, False), world_size, rank))
        for rank in range(world_size)
    ]
    for step in range(12):
        assert Counter(row for mine in batches for row in mine[step]) == Counter(order.indices(step, 8))


def test_resume_starts_where_it_stopped():
    order = SeededOrder(50, 9)
    assert list(SeededSampler(order, 300, start=120)) == list(SeededSampler(order, 300))[120:]
    assert list(SeededBatchSampler(order, 6, 20, start_step=7)) == list(SeededBatchSampler(order, 6, 20))[7:]
    assert len(SeededSampler(order, 300, start=120)) == 180
    assert len(SeededBatchSampler(order, 6, 20, start_step=7)) == 13


def test_a_mixture_keeps_its_proportions_in_every_block():
    sizes, weights = [500, 30, 2000], [0.5, 0.3, 0.2]
    rows = MixtureOrder(sizes, weights, 1, block=100).rows(np.arange(1000)).reshape(10, 100)
    sources = np.searchsorted(np.cumsum(sizes), rows, side="right")
    assert all(np.bincount(block).tolist() == [50, 30, 20] for block in sources)
    assert len({tuple(block) for block in sources}) == 10


def test_a_mixture_repeats_no_row_of_a_source_before_the_others_were_seen():
    rows = MixtureOrder([40, 7], [3, 1], 2, block=8).rows(np.arange(160))
    small = rows[rows >= 40]
    for start in range(0, small.size - 6, 7):
        assert sorted(small[start : start + 7].tolist()) == list(range(40, 47))


def test_a_mixture_can_be_entered_anywhere():
    order = MixtureOrder([40, 7, 11], [3, 1, 1], 2, block=10)
    whole = order.rows(np.arange(200))
    assert order.rows(np.arange(93, 121)).tolist() == whole[93:121].tolist()
    assert order.indices(31, 5) == whole[155:160].tolist()


def test_a_weight_too_small_to_be_drawn_is_refused():
    with pytest.raises(ValueError, match="never be drawn"):
        MixtureOrder([5, 5], [1, 1e-6], 0)
