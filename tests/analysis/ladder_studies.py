"""Ladders of a known law with errors of points, of trunks and of shapes, for tests of what is predicted from them."""

from __future__ import annotations

import numpy as np

from hf_arch.analysis.held_out import HeldOut, predict_held_out
from hf_arch.analysis.loss_surface import Points
from hf_arch.analysis.scaling import Refused

LAWS = {"E 1.2": (1.2, 0.4, 0.6, 0.3, 0.5), "E 0.8": (0.8, 0.7, 0.3, 0.25, 0.35), "E 0": (0.0, 1.2, 0.12, 0.6, 0.12)}
"""E, A, a, B, b, with A and B at the largest size and budget."""
ERRORS = {"points": (0.01, 0.0, 0.0), "trunks": (0.003, 0.01, 0.0), "shapes": (0.003, 0.004, 0.01)}
"""Standard deviations in nats of each run, of what the runs of a trunk share, and of what all runs of a size share."""
MORE_SIZES = np.geomspace(8e3, 5e4 * 1.6**2, 7)
"""Of which six smaller ones have a scatter with degrees of freedom of its own."""
SIZES, TIMES, SEEDS = np.geomspace(8e3, 5e4, 5), (5.0, 10.0, 20.0, 40.0), 2


def predicted(law: str, errors: str, seed: int, sizes: np.ndarray = SIZES) -> HeldOut | Refused:
    """The largest of the `sizes` of one simulated ladder, predicted from the others."""
    rng = np.random.default_rng(seed)
    offset, big_a, a, big_b, b = LAWS[law]
    of_run, of_trunk, of_shape = ERRORS[errors]
    n = np.repeat(sizes, len(TIMES))
    d = n * np.tile(TIMES, len(sizes))
    losses = offset + big_a * (n / n.max()) ** -a + big_b * (d / d.max()) ** -b
    trunks = of_trunk * rng.standard_normal((SEEDS, len(sizes))) + of_shape * rng.standard_normal(len(sizes))
    runs = losses + np.repeat(trunks, len(TIMES), axis=1) + of_run * rng.standard_normal((SEEDS, len(n)))
    points, largest = Points(n, d, tuple(runs.T)), n == n.max()
    return predict_held_out(points.where(~largest), points.where(largest))
