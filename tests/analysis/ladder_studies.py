"""Ladders of a known law with errors of points, of trunks and of shapes, for tests of what is predicted from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_arch.analysis.admissible import admissible_laws
from hf_arch.analysis.held_out import HeldOut, predict_held_out
from hf_arch.analysis.ladder_compute import Frontier, multipliers
from hf_arch.analysis.loss_surface import Points
from hf_arch.analysis.scaling import Refused

Law = tuple[float, ...]
LAWS: dict[str, Law] = {
    "E 1.2": (1.2, 0.4, 0.6, 0.3, 0.5),
    "E 0.8": (0.8, 0.7, 0.3, 0.25, 0.35),
    "E 0": (0.0, 1.2, 0.12, 0.6, 0.12),
}
"""E, A, a, B, b, with A and B at the largest size and budget."""
PAIRS: dict[str, tuple[Law, Law]] = {
    "E 1.2": ((1.2, 0.4, 0.6, 0.3, 0.5), (1.2, 0.43, 0.55, 0.33, 0.45)),
    "E 0.8": ((0.8, 0.7, 0.3, 0.25, 0.35), (0.8, 0.74, 0.28, 0.27, 0.35)),
    "E 0": ((0.0, 1.2, 0.12, 0.6, 0.12), (0.0, 1.22, 0.12, 0.63, 0.11)),
    "joined": ((0.8, 0.5, 0.4, 0.4, 0.4, 0.7), (0.8, 0.53, 0.4, 0.42, 0.37, 0.7)),
}
"""Two laws each, the second the one whose compute is a whole; those of `joined` are of another form than is fitted."""
ERRORS = {"points": (0.01, 0.0, 0.0), "trunks": (0.003, 0.01, 0.0), "shapes": (0.003, 0.004, 0.01)}
"""Standard deviations in nats of each run, of what the runs of a trunk share, and of what all runs of a size share."""
MORE_SIZES = np.geomspace(8e3, 5e4 * 1.6**2, 7)
"""Of which six smaller ones have a scatter with degrees of freedom of its own."""
SIZES, TIMES, SEEDS = np.geomspace(8e3, 5e4, 5), (5.0, 10.0, 20.0, 40.0), 2


def predicted(law: str, errors: str, seed: int, sizes: np.ndarray = SIZES) -> HeldOut | Refused:
    """The largest of the `sizes` of one simulated ladder, predicted from the others."""
    points = simulated(LAWS[law], errors, seed, sizes)
    largest = points.parameters == points.parameters.max()
    return predict_held_out(points.where(~largest), points.where(largest))


def simulated(law: Law, errors: str, seed: int, sizes: np.ndarray = SIZES) -> Points:
    """The points of one simulated ladder."""
    rng = np.random.default_rng(seed)
    of_run, of_trunk, of_shape = ERRORS[errors]
    n = np.repeat(sizes, len(TIMES))
    d = n * np.tile(TIMES, len(sizes))
    trunks = of_trunk * rng.standard_normal((SEEDS, len(sizes))) + of_shape * rng.standard_normal(len(sizes))
    noise = np.repeat(trunks, len(TIMES), axis=1) + of_run * rng.standard_normal((SEEDS, len(n)))
    return Points(n, d, tuple((true_loss(law, n / n.max(), d / d.max()) + noise).T))


def true_loss(law: Law, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Loss at shares of the largest size and budget; terms of size and tokens joined by the power `join`, 1 in the
    form that is fitted and another in Kaplan et al.'s."""
    offset, big_a, a, big_b, b, *join = law
    power = join[0] if join else 1.0
    return offset + ((big_a * n**-a) ** (1 / power) + (big_b * d**-b) ** (1 / power)) ** power


def flops_per_token(n: np.ndarray) -> np.ndarray:
    """Six a parameter, and some that grow with the width."""
    return 6 * n + 300 * np.sqrt(n)


@dataclass(frozen=True)
class Study:
    """The bands of one simulated ladder of two laws: [numbers, 3] of the least, the truth and the greatest; sizes
    within a step of the grid that they are read from."""

    minima: np.ndarray
    ratios: np.ndarray


def compute_study(pair: str, errors: str, seed: int, sizes: np.ndarray = SIZES) -> Study:
    """Best sizes of the first at four computes, and multipliers against the second at seven."""
    one, other = PAIRS[pair]
    cost = np.repeat(flops_per_token(sizes), len(TIMES))
    flops = cost * np.repeat(sizes, len(TIMES)) * np.tile(TIMES, len(sizes))
    laws = [admissible_laws(simulated(law, errors, 2 * seed + i, sizes)) for i, law in enumerate((one, other))]
    frontiers = [Frontier(found, cost) for found in laws if not isinstance(found, Refused)]
    found = multipliers("one", "other", frontiers[0], frontiers[1], flops)
    computes = np.asarray(found.flops)
    follow = np.geomspace(flops.min() / 1e3, flops.max() * 1e3, 3000)
    best, _sizes = true_frontier(one, sizes, follow)
    reached = np.exp(np.interp(-true_frontier(other, sizes, computes)[0], -best, np.log(follow))) / computes
    minima = [frontiers[0].minimum(c) for c in np.geomspace(flops.min(), flops.max(), 6)[1:-1]]
    true = true_frontier(one, sizes, np.asarray([minimum.flops for minimum in minima]))[1]
    step = frontiers[0].sizes[1] / frontiers[0].sizes[0]
    return Study(
        np.asarray([(m.low / step, size, m.high * step) for m, size in zip(minima, true, strict=True)]),
        np.stack([found.low, reached, found.high], axis=1),
    )


def true_frontier(law: Law, sizes: np.ndarray, compute: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The loss of the best size at each compute, and that size, among those from the smallest to the largest."""
    grid = np.geomspace(sizes[0], sizes[-1], 1000)
    cost = np.exp(np.interp(np.log(grid), np.log(sizes), np.log(flops_per_token(sizes))))
    losses = true_loss(law, grid / sizes.max(), compute[:, None] / cost / (sizes.max() * max(TIMES)))
    return losses.min(axis=1), grid[losses.argmin(axis=1)]


def covered(bands: np.ndarray) -> np.ndarray:
    """Whether each truth is between its ends."""
    return (bands[:, 0] <= bands[:, 1]) & (bands[:, 1] <= bands[:, 2])
