"""Every law L(N, D) = E + A N^-a + B D^-b that the points of a ladder do not reject, and what they say together.

A law is admissible where its sum of squares, in units of the error, is within t^2 (of Student's t) of the least, with
E, A, B >= 0 and a, b within their bounds. The range of a number over the admissible laws is its profile interval: in
a linear model the exact one, and here one that holds where the constants themselves are not determined, E from 0 up.

Points of one size are not independent: they share a trunk, seed by seed, and a shape, which is not quite that of
another size. Their error has a part common to a size and a part of each point. The common part is known from the
spread over seeds and from the scatter of the sizes about the law: as many degrees of freedom as sizes beyond the three
constants that sizes determine (E, A, a), and seeds beyond one at each size; where the scatter alone is the larger, it
counts, with its own degrees where it has three (six sizes). Fewer than three degrees are refused.

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


def admissible_laws(points: Points, level: float = LEVEL) -> AdmissibleLaws | Refused:
    """The laws that `points` do not reject, or why their error is not known."""
    sizes, place = np.unique(points.parameters, return_inverse=True)
    if len(sizes) < 3 or len(set(points.tokens)) < 3:
        return Refused(f"{len(sizes)} sizes and {len(set(points.tokens))} budgets; at least 3 of each are needed")
    if len(place) == len(sizes):
        return Refused("each size has one budget, so that what tokens do is not told from what the size does")
    if all(np.corrcoef(np.log(x), points.means)[0, 1] >= 0 for x in (points.parameters, points.tokens)):
        return Refused("the loss falls neither with parameters nor with tokens")
    seeds = np.asarray([min(len(points.losses[i]) for i in np.flatnonzero(place == k)) for k in range(len(sizes))])
    degrees = len(sizes) - 3 + int((seeds - 1).sum())
    if degrees < FEWEST_DEGREES:
        return Refused(
            f"{len(sizes)} sizes and {int(seeds.max())} seeds leave {degrees} degrees of freedom for the error; "
            f"at least {FEWEST_DEGREES} are needed: more sizes or seeds"
        )
    laws = AdmissibleLaws(points, np.eye(len(place)) * float(np.ptp(points.means)) ** 2 * 1e-8, 1.0)
    errors = _errors(points, points.means - laws.predict(points.parameters, points.tokens), place, seeds, degrees)
    noise = np.where(place[:, None] == place[None], errors[0], 0.0) + errors[1] * np.eye(len(place))
    return AdmissibleLaws(points, noise, t_squared(degrees, level), degrees, sum(errors))


def t_squared(degrees: int, level: float = LEVEL) -> float:
    """How far the sum of squares of an admissible law may be above the smallest."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, degrees)) ** 2


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
    return t_squared(own) / t_squared(degrees) if own >= FEWEST_DEGREES else 1.0


@dataclass(frozen=True)
class _Range:
    """What m numbers linear in the constants can be, for each pair of exponents: the sum of squares rises by
    (y - centre)^2 / total where one is y [pairs, m]; `room` [pairs, 1] is left below that of the best pair, and between
    `lowest` and `highest` no constant is negative."""

    room: np.ndarray
    centre: np.ndarray
    total: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    signed: np.ndarray

    def within(self, bound: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The least and the greatest, where that is possible, and the greatest if constants could be negative."""
        room = self.room + bound
        half = np.sqrt(np.maximum(room, 0.0) * self.total)
        most = self.centre + half
        lower, upper = np.maximum(self.centre - half, self.lowest), np.minimum(most, self.highest)
        return lower, upper, self.signed & (room >= 0) & (lower <= upper), most


class AdmissibleLaws:
    """Laws with E, A, B >= 0 near the points, whose errors have the covariance `noise`: `exponents` [pairs, 2], those
    for which the sum of squares is within `bound` of the smallest, of `least`; `variance` is that of a new mean."""

    def __init__(
        self, points: Points, noise: np.ndarray, bound: float, degrees: int = 0, variance: float = 0.0
    ) -> None:
        self.points, self.noise, self.bound = points, noise, bound
        self.degrees, self.variance = degrees, variance
        self.unit = tuple(float(np.exp(np.log(x).mean())) for x in (points.parameters, points.tokens))
        self.whiten = np.linalg.inv(np.linalg.cholesky(noise))
        self.basis = np.log(points.parameters / self.unit[0]), np.log(points.tokens / self.unit[1])
        self.losses = self.whiten @ points.means
        self.exponents = self._close_in()
        squares, constants = self._best_constants(self.exponents)
        best = int(squares.argmin())
        self.least, self.best = float(squares[best]), (*self.exponents[best], *constants[best])

    def within(self, bound: float) -> AdmissibleLaws:
        """The same with another bound."""
        if bound == self.bound:
            return self
        return AdmissibleLaws(self.points, self.noise, bound, self.degrees, self.variance)

    def predict(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Losses by the best fit, float64 [n]."""
        a, b, offset, big_a, big_b = self.best
        return offset + big_a * (parameters / self.unit[0]) ** -a + big_b * (tokens / self.unit[1]) ** -b

    def band(self, parameters: float, tokens: float, variance: float) -> tuple[float, float]:
        """The lowest and the highest new loss there, of an error of that variance, which the points do not reject."""
        low, high = self.extremes(self.terms(np.asarray([parameters]), np.asarray([tokens])), self.bound, variance)
        return float(low.min()), float(high.max())

    def terms(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What E, A and B multiply in the loss at each of m points: [pairs, m, 3]."""
        return _columns(self.exponents, (np.log(parameters / self.unit[0]), np.log(tokens / self.unit[1])))

    def extremes(self, x: np.ndarray, bound: float, variance: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest x (E, A, B) + e over the laws within `bound`, for e of that variance: x is
        [pairs, m, 3], each side [faces x pairs, m]; inf and -inf where a pair has no such law."""
        found = [self._range(x, kept, variance).within(bound) for kept in _FACES]
        lower, upper, possible, _most = (np.concatenate(side) for side in zip(*found, strict=True))
        return np.where(possible, lower, np.inf), np.where(possible, upper, -np.inf)

    def least_of(self, x: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest, over the laws within each of the bounds, of the smallest x (E, A, B) of a law:
        x is [pairs, k, m, 3], where the smallest is over m; each side [bounds, k]."""
        low, high = [], []
        for found in (self._range(x.reshape(len(x), -1, 3), kept) for kept in _FACES):
            for bound in bounds:
                lower, upper, possible, most = (side.reshape(x.shape[:3]) for side in found.within(bound))
                low.append(np.where(possible, lower, np.inf).min(axis=(0, 2)))
                # No law is above any of its own losses; where one direction has no law, the bound without signs holds.
                highest = np.where(possible, upper, most).min(axis=2)
                high.append(np.where(possible.any(axis=2), highest, -np.inf).max(axis=0))
        shape = len(_FACES), len(bounds), -1
        return np.reshape(low, shape).min(axis=0), np.reshape(high, shape).max(axis=0)

    def _range(self, x: np.ndarray, kept: list[int], variance: float = 0.0) -> _Range:
        squares, constants, inverse = self._constants(self.exponents, kept)
        part = x[..., kept]
        gain = part @ inverse
        total = variance + (gain * part).sum(axis=-1)
        centre = (part @ constants[..., None])[..., 0]
        slope = gain / total[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            zero = centre[..., None] - constants[:, None] / slope  # the y at which a constant would change its sign
        return _Range(
            (self.least - squares)[:, None],
            centre,
            total,
            np.where(slope > 0, zero, -np.inf).max(axis=-1),
            np.where(slope < 0, zero, np.inf).min(axis=-1),
            ((slope != 0) | (constants[:, None] >= 0)).all(axis=-1),
        )

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
