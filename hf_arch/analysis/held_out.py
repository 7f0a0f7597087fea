"""The largest size of a ladder predicted from the others, with a band that says what those do not determine.

The constants of L(N, D) = E + A N^-a + B D^-b may be unknown where the loss itself is well known: over a narrow range
of sizes a low E with a small a and a high E with a large a are the same curve, and one step beyond the range they
still differ little. So a law that is refused (`loss_surface`) does not refuse a prediction. The band is the set of new
losses y that the points do not reject: with y added as one more point, the best fit over all E, A, B >= 0 and a, b
within their bounds may rise by no more than t^2 (of Student's t). In a linear model this is the exact prediction
interval; here it takes in every law that the points allow, E from 0 up.

Points of one size are not independent: they share a trunk, seed by seed, and a shape, which is not quite that of
another size. Their error has a part common to a size and a part of each point. The common part is known from the
spread over seeds and from the scatter of the sizes about the law: as many degrees of freedom as sizes beyond the three
constants that sizes determine (E, A, a), and seeds beyond one at each size; where the scatter alone is the larger, it
counts, with its own degrees where it has three (six sizes). Fewer than three degrees are refused, as is a band wider
than all losses that were measured.

Simulated (`tools.prediction_coverage`: 4 sizes predict a fifth, 4 budgets, 2 seeds; E large, small and 0), the band of
95 % holds at least 95 % of new losses under noise of points and of trunks. What it does not hold is an error that
neither the seeds nor the scatter of so few sizes can show: shapes that scatter several times more than the seeds do
(85 to 90 % from four sizes, 95 to 96 % from six), and a law that is wrong, whose exponents change beyond the sizes.

For given a and b the law is linear in E, A and B, so that only a and b are searched, on a grid that closes in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_arch.analysis.loss_surface import EXPONENTS, Points
from hf_arch.analysis.scaling import Refused
from hf_arch.analysis.stats import LEVEL

GRID, A_ROUNDS, B_ROUNDS = 24, 3, 3
"""Exponents of each kind at once, and how often the grid closes in on each."""
_FACES = [[0, 1, 2], [1, 2]]
"""Which of E, A and B are free: all, or E is 0."""
FEWEST_DEGREES = 3
SMALLEST_NOISE = 1e-5
"""Of the mean loss: the least error that is believed."""


@dataclass(frozen=True)
class HeldOut:
    """The largest size, predicted from the others: measured losses, predictions and their bands, one a budget."""

    size: float
    tokens: tuple[float, ...]
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def inside(self) -> int:
        """Budgets at which the measured loss is within the band."""
        return sum(a <= x <= b for a, x, b in zip(self.low, self.measured, self.high, strict=True))

    @property
    def words(self) -> str:
        """How well it was predicted, in one sentence."""
        off = max(abs(p / m - 1) for p, m in zip(self.predicted, self.measured, strict=True))
        half = max((b - a) / 2 / p for a, b, p in zip(self.low, self.high, self.predicted, strict=True))
        return (
            f"the largest size, predicted from the others: within the 95 % band at {self.inside} of "
            f"{len(self.measured)} budgets, off by at most {off:.1%} (half the band is at most {half:.1%})"
        )


def predict_held_out(rest: Points, target: Points, level: float = LEVEL) -> HeldOut | Refused:
    """The losses of `target`, points of one size, predicted from the points of the other sizes, or why they are not."""
    from scipy.stats import t

    sizes, place = np.unique(rest.parameters, return_inverse=True)
    if len(sizes) < 3 or len(set(rest.tokens)) < 3:
        return Refused(f"{len(sizes)} other sizes and {len(set(rest.tokens))} budgets; at least 3 of each are needed")
    seeds = np.asarray([min(len(rest.losses[i]) for i in np.flatnonzero(place == k)) for k in range(len(sizes))])
    degrees = len(sizes) - 3 + int((seeds - 1).sum())
    if degrees < FEWEST_DEGREES:
        return Refused(
            f"{len(sizes)} other sizes and {int(seeds.max())} seeds leave {degrees} degrees of freedom for the error; "
            f"at least {FEWEST_DEGREES} are needed: more sizes or seeds"
        )
    bound = float(t.ppf((1 + level) / 2, degrees)) ** 2
    laws = _Laws(rest, np.eye(len(place)) * float(np.ptp(rest.means)) ** 2 * 1e-8, 1.0)
    shared, own = _errors(rest, rest.means - laws.predict(rest.parameters, rest.tokens), place, seeds, degrees)
    laws = _Laws(rest, np.where(place[:, None] == place[None], shared, 0.0) + own * np.eye(len(place)), bound)
    predicted = laws.predict(target.parameters, target.tokens)
    bands = [laws.band(n, d, shared + own) for n, d in zip(target.parameters, target.tokens, strict=True)]
    low, high = np.asarray(bands).T
    if float(np.min(high - low)) > float(np.ptp(rest.means)):
        return Refused(
            f"the band, {float(np.min(high - low)):.2g} nats wide, is wider than the losses of all other sizes and "
            f"budgets ({float(np.ptp(rest.means)):.2g} nats)"
        )
    return HeldOut(
        float(target.parameters[0]),
        *(tuple(values.tolist()) for values in (target.tokens, target.means, predicted, low, high)),
    )


def _errors(
    points: Points, residuals: np.ndarray, place: np.ndarray, seeds: np.ndarray, degrees: int
) -> tuple[float, float]:
    """Variance of a point's mean over seeds: the part common to the points of a size, and the part of each."""
    counts = np.bincount(place)
    common = np.bincount(place, residuals) / counts
    # The spread over seeds counts as common to a size: seeds share their trunk, and which do is not assumed.
    spread = np.asarray([losses.var(ddof=1) / len(losses) if len(losses) > 1 else 0.0 for losses in points.losses])
    by_size = np.bincount(place, spread) / counts
    floor = (SMALLEST_NOISE * float(points.means.mean())) ** 2
    scatter = float((common**2).sum())
    shared = (scatter + float(((seeds - 1) * by_size).sum())) / degrees
    if len(seeds) > 3:
        shared = max(shared, scatter / (own_degrees := len(seeds) - 3) * _widening(own_degrees, degrees))
    own = float(((residuals - common[place]) ** 2).sum()) / max(len(place) - len(counts) - 2, 1)
    return max(shared, floor), max(own, floor)


def _widening(own: int, degrees: int) -> float:
    """What a variance that is known from `own` degrees of freedom is multiplied by, so that Student's t of `degrees`
    gives the interval of its own t; 1 below `FEWEST_DEGREES`, of which t says nothing."""
    from scipy.stats import t

    upper = (1 + LEVEL) / 2
    return float(t.ppf(upper, own) / t.ppf(upper, degrees)) ** 2 if own >= FEWEST_DEGREES else 1.0


class _Laws:
    """Laws with E, A, B >= 0 near the points, whose errors have the covariance `noise`: `exponents` [pairs, 2], those
    for which the sum of squares is within `bound` of the smallest, of `least`."""

    def __init__(self, points: Points, noise: np.ndarray, bound: float) -> None:
        self.unit = tuple(float(np.exp(np.log(x).mean())) for x in (points.parameters, points.tokens))
        self.whiten = np.linalg.inv(np.linalg.cholesky(noise))
        self.basis = np.log(points.parameters / self.unit[0]), np.log(points.tokens / self.unit[1])
        self.losses = self.whiten @ points.means
        self.bound = bound
        self.exponents = self._close_in()
        squares, constants = self._best_constants(self.exponents)
        best = int(squares.argmin())
        self.least, self.best = float(squares[best]), (*self.exponents[best], *constants[best])

    def predict(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Losses by the best fit, float64 [n]."""
        a, b, offset, big_a, big_b = self.best
        return offset + big_a * (parameters / self.unit[0]) ** -a + big_b * (tokens / self.unit[1]) ** -b

    def band(self, parameters: float, tokens: float, variance: float) -> tuple[float, float]:
        """The lowest and the highest new loss there, of an error of that variance, which the points do not reject."""
        at = np.log(parameters / self.unit[0]), np.log(tokens / self.unit[1])
        x = _columns(self.exponents, (np.asarray([at[0]]), np.asarray([at[1]])))[:, 0]
        low, high = [], []
        for kept in _FACES:
            squares, constants, inverse = self._constants(self.exponents, kept)
            gain = np.einsum("pij,pj->pi", inverse, x[:, kept])
            total = variance + np.einsum("pi,pi->p", gain, x[:, kept])
            centre = np.einsum("pi,pi->p", constants, x[:, kept])
            # With y as one more point the sum of squares rises by (y - centre)^2 / total.
            room = self.least + self.bound - squares
            half = np.sqrt(np.maximum(room, 0.0) * total)
            slope = gain / total[:, None]
            with np.errstate(divide="ignore", invalid="ignore"):
                zero = centre[:, None] - constants / slope  # the y at which a constant would change its sign
            lower = np.maximum(centre - half, np.where(slope > 0, zero, -np.inf).max(axis=1))
            upper = np.minimum(centre + half, np.where(slope < 0, zero, np.inf).min(axis=1))
            possible = (room >= 0) & (lower <= upper) & ((slope != 0) | (constants >= 0)).all(axis=1)
            low.append(lower[possible])
            high.append(upper[possible])
        return float(np.concatenate(low).min()), float(np.concatenate(high).max())

    def _close_in(self) -> np.ndarray:
        """Pairs of a and b: for each a, those b that come near the best for that a; then the same for a."""
        ends = np.log(EXPONENTS)
        low, high = ends
        for _ in range(A_ROUNDS):
            log_a = np.linspace(low, high, GRID)
            box = np.tile(ends, (GRID, 1))
            for _ in range(B_ROUNDS):
                log_b = np.linspace(box[:, 0], box[:, 1], GRID, axis=1)
                pairs = np.exp(np.stack(np.broadcast_arrays(log_a[:, None], log_b), axis=-1))
                squares = self._best_constants(pairs.reshape(-1, 2))[0].reshape(GRID, GRID)
                box = np.asarray([_near(row, values, self.bound) for row, values in zip(log_b, squares, strict=True)])
            low, high = _near(log_a, squares.min(axis=1), self.bound)
        return pairs[squares <= squares.min() + self.bound]

    def _best_constants(self, exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest weighted sum of squares with E, A, B >= 0, and those three, for each pair; infinite for none."""
        squares = np.full(len(exponents), np.inf)
        best = np.zeros((len(exponents), 3))
        for kept in _FACES:
            found, constants, _inverse = self._constants(exponents, kept)
            better = (constants >= 0).all(axis=1) & (found < squares)
            squares[better] = found[better]
            best[better] = 0.0
            for place, column in enumerate(kept):
                best[better, column] = constants[better, place]
        return squares, best

    def _constants(self, exponents: np.ndarray, kept: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Least squares over the `kept` of E, A, B without bounds: sums of squares [pairs], constants [pairs, kept],
        and their covariance [pairs, kept, kept]."""
        x = self.whiten @ _columns(exponents, self.basis)[..., kept]
        inverse = np.linalg.inv(np.swapaxes(x, 1, 2) @ x)
        constants = np.einsum("pij,pnj,n->pi", inverse, x, self.losses)
        residuals = self.losses - np.einsum("pnj,pj->pn", x, constants)
        return (residuals**2).sum(axis=1), constants, inverse


def _columns(exponents: np.ndarray, basis: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """What E, A and B multiply: [pairs, points, 3]."""
    powers = [np.exp(-exponents[:, i, None] * basis[i]) for i in (0, 1)]
    return np.stack([np.ones_like(powers[0]), *powers], axis=-1)


def _near(grid: np.ndarray, squares: np.ndarray, bound: float) -> tuple[float, float]:
    """The ends of the part of a grid whose sums of squares are within `bound` of the smallest, and one step beyond."""
    (kept,) = np.nonzero(squares <= squares.min() + bound)
    return float(grid[max(kept[0] - 1, 0)]), float(grid[min(kept[-1] + 1, len(grid) - 1)])
