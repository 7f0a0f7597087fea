"""State tracking: the running product in a group (Merrill et al. 2024; Grazzi et al. 2024).

Token t is a group element x_t; the answer at every position is x_t ... x_2 x_1. Parity is Z_2, S_3 the smallest group
that does not commute, and S_5 is not solvable: its word problem is complete for NC^1, so neither attention of a fixed
depth nor a diagonal recurrence is expected to follow it at all lengths. Diagonal recurrences with positive eigenvalues
fail parity already.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import permutations

import numpy as np

from hf_arch.data.probes.probe import IGNORE, Probe, ProbeData, ProbeSetting, require, to_data, vary


@cache
def multiplication_table(degree: int) -> np.ndarray:
    """Products in the symmetric group of `degree` points: entry [a, b] is a after b; int64 [degree!, degree!].

    Elements are numbered as permutations in lexicographic order, so 0 is the identity.
    """
    elements = np.array(list(permutations(range(degree))))
    weights = degree ** np.arange(degree)[::-1]
    codes = elements @ weights  # ascending, as the order is lexicographic
    products = elements[:, elements]  # [a, b, point] = a(b(point))
    return np.searchsorted(codes, products @ weights)


@cache
def moves(degree: int, moved_points: int) -> np.ndarray:
    """The elements of the symmetric group of `degree` points that leave all but at most `moved_points` in place, the
    identity among them; int64 [count], ascending. Two moved points are the swaps."""
    elements = np.array(list(permutations(range(degree))))
    return np.flatnonzero((elements != np.arange(degree)).sum(axis=1) <= moved_points)


def state_tracking(
    rng: np.random.Generator,
    examples: int,
    *,
    degree: int = 2,
    sequence_length: int = 64,
    answers_from: int = 0,
    moved_points: int | None = None,
) -> ProbeData:
    """Rows of the word problem of the symmetric group of `degree` points; S_2 is parity. Positions before
    `answers_from` are not asked. Each move is one of the elements that move at most `moved_points` points (Grazzi et
    al. 2024, section 5: 2 are the swaps, an easier task), or any element where that is None."""
    require(2 <= degree <= 5, "state_tracking.degree", degree, "2 (parity), 3, 4, 5")
    require(sequence_length >= 1, "state_tracking.sequence_length", sequence_length, "at least 1")
    require(0 <= answers_from < sequence_length, "state_tracking.answers_from", answers_from, "0 to below the length")
    require(
        moved_points is None or 2 <= moved_points <= degree,
        "state_tracking.moved_points",
        moved_points,
        f"none for any element, or 2 (swaps) to {degree} (the degree)",
    )
    table = multiplication_table(degree)
    if moved_points is None:
        inputs = rng.integers(0, len(table), (examples, sequence_length))
    else:
        inputs = rng.choice(moves(degree, moved_points), (examples, sequence_length))
    labels = np.empty_like(inputs)
    state = np.zeros(examples, dtype=np.int64)
    for place in range(sequence_length):
        state = table[inputs[:, place], state]
        labels[:, place] = state
    labels[:, :answers_from] = IGNORE
    return to_data(inputs, labels, len(table))


def _probe(name: str, degree: int, question: str, length: int, cpu_length: int) -> Probe:
    return Probe(
        name=name,
        question=question,
        generate=partial(state_tracking, degree=degree),
        settings=vary({"sequence_length": length}, train_examples=100_000),
        cpu=ProbeSetting({"sequence_length": cpu_length}, train_examples=8_192, test_examples=512),
    )


def _longer(name: str, degree: int, question: str, length: int, cpu_length: int) -> Probe:
    """Learned at one length, asked at the positions after it, up to four times as far."""
    return Probe(
        name=name,
        question=question,
        generate=partial(state_tracking, degree=degree),
        settings=(ProbeSetting({"sequence_length": length}, 100_000, test_options=_beyond(length)),),
        cpu=ProbeSetting({"sequence_length": cpu_length}, 8_192, 512, test_options=_beyond(cpu_length)),
    )


def _beyond(length: int) -> dict[str, int]:
    return {"sequence_length": 4 * length, "answers_from": length}


PARITY = _probe("parity", 2, "Can one bit be flipped again and again?", 64, 32)
S3 = _probe("s3", 3, "Can a state be followed when the order of the moves matters?", 64, 16)
S5 = _probe("s5", 5, "Can the moves of five things be followed, which no shallow circuit can?", 64, 12)
PARITY_LENGTH = _longer("parity_length", 2, "Is parity followed past the lengths that were learned?", 40, 16)
S5_LENGTH = _longer("s5_length", 5, "Are the moves of five things followed past the lengths that were learned?", 32, 8)
